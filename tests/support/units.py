"""Units of systemd as the tests read them, and their command lines as systemd would run them."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from collections.abc import Mapping
from functools import cache
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[2] / "packaging" / "systemd"
UNITS = ("clover.service", "clover@.service")
PYTHON = "/opt/clover/bin/python"
"""The interpreter that the units name."""
ANALYZE = shutil.which("systemd-analyze") or ""


def directives(name: str) -> dict[str, list[str]]:
    """Return the settings of a unit, each with its values in order."""
    text = re.sub(r"\\\n\s*", "", (FOLDER / name).read_text(encoding="utf-8"))
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        if line and line[0] not in "#[":
            key, _, value = line.partition("=")
            found.setdefault(key, []).append(value)
    return found


def command(name: str, places: Mapping[str, str], instance: str = "") -> list[str]:
    """Return the words of `ExecStart=`; `places` has what stands for a specifier (`%S`) or for the beginning of a
    path."""
    (line,) = directives(name)["ExecStart"]
    line = line.replace("%i", instance)
    for mark, path in places.items():
        line = line.replace(mark, path)
    assert "%" not in line, line
    return shlex.split(line)


@cache
def calls_of(group: str) -> frozenset[str]:
    """Return the system calls of a group (`@system-service`), as this machine's systemd has it."""
    done = subprocess.run([ANALYZE, "syscall-filter", group], capture_output=True, text=True, timeout=30, check=True)
    found: set[str] = set()
    for word in done.stdout.split()[1:]:
        if word.startswith("@"):
            found |= calls_of(word)
        elif re.fullmatch(r"[a-z0-9_]+", word):
            found.add(word)
    return frozenset(found)
