"""The verb `emulate` of `clover mig`: arguments, exit codes, and the box that is made or continued.

Any program has emulated GPUs: the NVML that it loads answers from a state file instead of a driver.  A program finds
NVML by asking the loader for `libnvidia-ml.so.1`.  A folder in which that name leads to Clover's emulated library, put
in front of LD_LIBRARY_PATH, is therefore all it takes; CLOVER_NVML_STATE names the state file to the library.  Nothing
of the program changes, and nothing outside it: another terminal sees other GPUs, or none.

The program runs under a small process of its own (`supervise`), which passes signals on and cleans up.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import sys
import tempfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from clover import devices
from clover.cli import CommandParser
from clover.cli.mig.command import DIFFERS, DONE, EMULATE_ABOUT, USAGE
from clover.devices import tables
from clover.emulation import boxes, emulated
from clover.errors import ConfigError, DeviceError
from clover.hints import program


def main(argv: Sequence[str], environ: Mapping[str, str]) -> int:
    """Run the verb with the words behind it and return its exit code; `-- COMMAND` passes on that of COMMAND."""
    words = list(argv)
    words, command = (words[: words.index("--")], words[words.index("--") + 1 :]) if "--" in words else (words, None)
    about = f"{EMULATE_ABOUT[:1].upper()}{EMULATE_ABOUT[1:]}."
    parser = CommandParser(prog=f"{program()} mig emulate", description=about)
    _add_arguments(parser)
    try:
        given = parser.parse_args(words)
    except SystemExit as stop:
        return int(stop.code or 0)
    try:
        return _emulate(given, command, environ)
    except (ConfigError, DeviceError) as error:
        sys.stdout.flush()
        print(f"clover mig emulate: {error}", file=sys.stderr)
        return USAGE if isinstance(error, ConfigError) else DIFFERS
    except KeyboardInterrupt:
        return 130


def _add_arguments(emulating: argparse.ArgumentParser) -> None:
    command = f"{program()} mig emulate"
    emulating.usage = (
        f"{command} NAME[:COUNT] [options] -- COMMAND...\n"
        f"       {command} NAME[:COUNT] [options] --state FILE\n"
        f"       {command} --state FILE -- COMMAND..."
    )
    boards = ", ".join((*tables.names(), *tables.plain_names(), "or pod-PROFILE: instances as a pod is given them"))
    emulating.add_argument("box", metavar="NAME[:COUNT]", nargs="?", default="", help=boards)
    emulating.add_argument(
        "--state", metavar="FILE", default="", help="keep the emulated GPUs in this file; one that exists is continued"
    )
    emulating.add_argument("--mig-off", action="store_true", help="create the GPUs with MIG mode off")
    emulating.add_argument("--unprivileged", action="store_true", help="refuse changes, as for a user without root")
    emulating.add_argument("--seed", type=int, metavar="N", help="seed of UUIDs [differs]")


def _emulate(given: argparse.Namespace, command: Sequence[str] | None, environ: Mapping[str, str]) -> int:
    if command is not None and not command:
        raise ConfigError("a command must follow --")
    if command is None and not given.state:
        raise ConfigError("give a command after --, or --state FILE to make a box that stays")
    if not given.box and not given.state:
        raise ConfigError("name a GPU, as a100-40gb:2, or give --state FILE of a box there is")
    if command is None and not given.box:
        raise ConfigError("say what to do with the box: name a GPU to make one, or give a command after --")
    folder = Path(given.state).parent if given.state else Path(tempfile.mkdtemp(prefix="clover-box-"))
    state = Path(given.state) if given.state else folder / "box.nvml"
    temporary = [] if given.state else [folder]
    try:
        made = _box_at(given, state)
        if command is not None:
            run(command, state, environ, remove=temporary)
    except BaseException:
        for path in temporary:
            shutil.rmtree(path, ignore_errors=True)
        raise
    print(f"{'made' if made else 'there is'} {state}: {given.box}; `--box {state}` acts on it")
    return DONE


def _box_at(given: argparse.Namespace, state: Path) -> bool:
    """Make the emulated GPUs, or check that they exist; return whether they were made."""
    if not given.box:
        if given.mig_off or given.unprivileged or given.seed is not None:
            raise ConfigError("--mig-off, --unprivileged and --seed are for a new box: name its GPU, as a100-40gb:2")
        if not state.is_file():
            raise ConfigError(f"there is no emulated box {state}: name a GPU to make one, as a100-40gb:2")
        return False
    missing = not state.exists()
    # Boxes that stand beside each other must not share UUIDs: what is Clover's is recorded by them.
    seed = zlib.crc32(os.fsencode(state.resolve())) if given.seed is None else given.seed
    if boxes.is_pod(given.box.lower()):
        if given.mig_off:
            raise ConfigError(f"{given.box} is a pod with MIG instances: leave --mig-off out")
        boxes.make_pod(devices.parse(f"emulated:{given.box.lower()}"), state, seed=seed)
        return missing
    name, count = parse_box(given.box)
    try:
        table = tables.board(name)
    except DeviceError as error:
        raise ConfigError(str(error)) from error
    emulated.create_box(
        state, table, count, privileged=not given.unprivileged, mig_enabled=not given.mig_off, seed=seed
    )
    return missing


_SUPERVISE = Path(__file__).with_name("supervise.py")

_BOX = re.compile(r"(?P<name>[a-z0-9][a-z0-9-]*)(?::(?P<count>\d{1,2}))?")


def parse_box(text: str) -> tuple[str, int]:
    """Return table and number of GPUs of NAME[:COUNT]; ConfigError if `text` is not of this form."""
    match = _BOX.fullmatch(text.lower())
    if match is None or (match["count"] and int(match["count"]) < 1):
        raise ConfigError(f"{text!r} must read NAME:COUNT, as a100-40gb:2")
    return match["name"], int(match["count"] or 1)


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
