"""Checking a configuration in a process of its own, as a reload must.

A check parses whole traces and runs the modules of families.  In the server's process, even in a thread, it would block
the event loop, and a module that ends its process would end the server.
"""

from __future__ import annotations

import contextlib
import json
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence

from clover.backends import child_environment
from clover.errors import ConfigError

CHECK_S = 120.0
_NEEDLESS = re.compile("OTEL_EXPORTER_OTLP_(.+_)?HEADERS")
"""Variables that hold secrets and that no check looks at."""
_TEXT_BYTES = 2000


def check_apart(
    words: Sequence[str], environ: Mapping[str, str], secrets: tuple[str, ...] = (), within_s: float = CHECK_S
) -> None:
    """Check the configuration that `words` and `environ` give (`clover.serve.checker`), and wait for that.

    Raises ConfigError with what the check says, if it fails, dies, or takes longer than `within_s`.  The process is not
    shown the `secrets`, which others could read in its environment, nor variables with others.  It ends with this
    process, however that ends.
    """

    def shown(text: str) -> str:
        for secret in secrets:
            if text == secret or (text.startswith("--") and text.endswith(f"={secret}")):
                return text[: -len(secret)] + "*" * len(secret)
            text = text.replace(json.dumps(secret), json.dumps("*" * len(secret)))  # in CLOVER_CARBON_PROVIDER
        return text

    environment = {name: shown(value) for name, value in environ.items() if not _NEEDLESS.fullmatch(name)}
    environment["PYTHONPATH"] = child_environment()["PYTHONPATH"]
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "clover.serve.checker", *map(shown, words)],
            stdin=subprocess.PIPE,  # open until it is done: its end tells the process that this one is gone
            stdout=subprocess.DEVNULL,
            stderr=said,
            env=environment,
        )
        with process:
            try:
                code = process.wait(within_s)
            except subprocess.TimeoutExpired as error:
                raise ConfigError(f"the check took more than {within_s:g} s") from error
            finally:
                process.kill()
        if code:
            said.seek(0)
            raise ConfigError(_reason(said.read()[-_TEXT_BYTES:].decode("utf-8", "replace"), code))


def _reason(said: str, code: int) -> str:
    """Return why a check failed that wrote `said` last and ended with `code`."""
    lines = said.splitlines()
    for line in reversed(lines):
        if line.startswith("clover: "):
            return line.removeprefix("clover: ")
    how = f"exit status {code}"
    with contextlib.suppress(ValueError):
        how = signal.Signals(-code).name if code < 0 else how
    return f"the check failed ({how}): {' '.join(lines)}"
