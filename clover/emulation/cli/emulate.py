"""Emulated GPUs for any program: the NVML that it loads answers from a state file instead of a driver.

A program finds NVML by asking the loader for `libnvidia-ml.so.1`.  A folder in which that name leads to Clover's
emulated library, put in front of LD_LIBRARY_PATH, is therefore all it takes; CLOVER_NVML_STATE names the state file to
the library.  Nothing of the program changes, and nothing outside it: another terminal sees other GPUs, or none.

The program runs under a small process of its own (`supervise`), which passes signals on and cleans up.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from clover.emulation import emulated
from clover.errors import ConfigError

_SUPERVISE = Path(__file__).with_name("supervise.py")

_BOX = re.compile(r"(?P<name>[a-z0-9][a-z0-9-]*)(?::(?P<count>\d{1,2}))?")


def parse_box(text: str) -> tuple[str, int]:
    """Return table and number of GPUs of NAME[:COUNT]; ConfigError if `text` is not of this form."""
    found = _BOX.fullmatch(text.lower())
    if found is None or (found["count"] and int(found["count"]) < 1):
        raise ConfigError(f"{text!r} must read NAME:COUNT, as a100-40gb:2")
    return found["name"], int(found["count"] or 1)


def run(command: Sequence[str], state: Path, environ: Mapping[str, str], *, remove: Sequence[Path] = ()) -> NoReturn:
    """Become `command` on the GPUs of `state`, and `remove` folders when it has ended.  Raises DeviceError."""
    library = emulated.library()
    folder = tempfile.mkdtemp(prefix="clover-nvml-")
    os.symlink(library, Path(folder, emulated.SONAME))
    paths = [folder, *filter(None, [environ.get("LD_LIBRARY_PATH", "")])]
    box = {emulated.STATE: str(state.resolve()), "LD_LIBRARY_PATH": os.pathsep.join(paths)}
    python = [sys.executable, "-I", "-S", str(_SUPERVISE), folder, *map(str, remove), "--"]
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(python[0], [*python, *command], {**environ, **box})
