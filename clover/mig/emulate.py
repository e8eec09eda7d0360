"""An emulated box for any program: the NVML it loads answers from a state file instead of a driver.

A program finds NVML by asking the loader for `libnvidia-ml.so.1`.  A folder in which that name leads to Clover's
emulated library, put in front of LD_LIBRARY_PATH, is therefore all it takes; CLOVER_NVML_STATE tells the library which
box it is.  Nothing of the program changes, and nothing outside it: another terminal sees another box, or none.

Signals are passed on, with care for one case: a Ctrl-C in a terminal reaches the whole foreground group, the program
included, and a second copy of it means "at once" to many servers.  The kernel says where a signal came from, so only
those that some process sent to this one alone are forwarded.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from clover.devices import emulated
from clover.errors import ConfigError
from clover.settings.schema import did_you_mean

SONAME = "libnvidia-ml.so.1"
STATE = "CLOVER_NVML_STATE"
_FORWARDED = {
    signal.SIGINT,
    signal.SIGTERM,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGUSR2,
}
_SENT_BY_PROCESS = 0
"""si_code of a signal sent by kill(2), or below it for the other calls; what the terminal sends lies above."""

_BOX = re.compile(r"(?P<name>[a-z0-9][a-z0-9-]*)(?::(?P<count>\d{1,2}))?")
_FAULT_FIELDS: dict[str, tuple[str, type]] = {
    "gpu": ("gpu", int),
    "nth": ("nth", int),
    "count": ("count", int),
    "probability": ("probability", float),
    "seconds": ("seconds", float),
    "delay": ("delay_s", float),
}


def parse_box(text: str) -> tuple[str, int]:
    """Table and number of GPUs of NAME[:COUNT]; ConfigError where it is not that."""
    found = _BOX.fullmatch(text.lower())
    if found is None or (found["count"] and int(found["count"]) < 1):
        raise ConfigError(f"{text!r} must read NAME:COUNT, as a100-40gb:2")
    return found["name"], int(found["count"] or 1)


def parse_fault(text: str) -> emulated.Fault:
    """The fault of SYMBOL=ERROR[:KEY=VALUE]...; ConfigError where it is not that."""
    head, *rest = text.split(":")
    symbol, equals, error = head.partition("=")
    form = "must read SYMBOL=ERROR[:KEY=VALUE]..., as nvmlDeviceCreateGpuInstanceWithPlacement=IN_USE:gpu=0:count=3"
    if not equals or not symbol:
        raise ConfigError(f"{text!r} {form}")
    values: dict[str, int | float] = {}
    for item in rest:
        key, equals, value = item.partition("=")
        if not equals or key not in _FAULT_FIELDS:
            known = ", ".join(_FAULT_FIELDS)
            raise ConfigError(f"{text!r} {form}; KEY is one of {known}{did_you_mean(key, _FAULT_FIELDS)}")
        name, kind = _FAULT_FIELDS[key]
        try:
            values[name] = kind(value)
        except ValueError:
            raise ConfigError(f"{text!r}: {key} takes a number, not {value!r}") from None
    return emulated.Fault(symbol=symbol, error=error, **values)  # type: ignore[arg-type]


def run(command: Sequence[str], state: Path, environ: Mapping[str, str]) -> int:
    """Run `command` on the box of `state` until it ends; its exit code, 128 + N where signal N ended it."""
    with tempfile.TemporaryDirectory(prefix="clover-nvml-") as folder:
        os.symlink(emulated.library(), Path(folder, SONAME))
        paths = [folder, *filter(None, [environ.get("LD_LIBRARY_PATH", "")])]
        box = {STATE: str(state.resolve()), "LD_LIBRARY_PATH": os.pathsep.join(paths)}
        return _spawn_and_wait(command, {**environ, **box})


def _spawn_and_wait(command: Sequence[str], environ: Mapping[str, str]) -> int:
    watched = {*_FORWARDED, signal.SIGCHLD}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, watched)
    try:
        try:
            child = os.posix_spawnp(command[0], list(command), environ, setsigmask=before)
        except OSError as error:
            # 126 and 127 as a shell: it is there and cannot run, it is not there.
            print(f"clover mig emulate: cannot run {command[0]}: {error.strerror}", file=sys.stderr)
            return 127 if isinstance(error, FileNotFoundError) else 126
        while True:
            seen = signal.sigwaitinfo(watched)
            if seen.si_signo == signal.SIGCHLD:
                pid, status = os.waitpid(child, os.WNOHANG)
                if pid:
                    code = os.waitstatus_to_exitcode(status)
                    return code if code >= 0 else 128 - code
            elif seen.si_code <= _SENT_BY_PROCESS:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child, seen.si_signo)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def temporary_state() -> Iterator[Path]:
    """A place for a state file that is gone afterwards."""
    folder = tempfile.mkdtemp(prefix="clover-box-")
    try:
        yield Path(folder, "box.nvml")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
