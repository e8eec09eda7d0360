"""`clover family manifest`: writes the SHA-256 of each file of a family, or checks the files against them."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from clover import families
from clover.cli import CommandParser
from clover.errors import CloverError, ConfigError
from clover.families import manifest
from clover.hints import program


def main(argv: Sequence[str]) -> int:
    """Run the command and return its exit code: 0, 2 for a wrong command line, 3 if files differ or cannot be read."""
    parser = CommandParser(
        prog=f"{program()} family manifest",
        description=f"Write {manifest.MANIFEST} into the folder of a family: the SHA-256 of each of its files, in the "
        "form of sha256sum.  From then on servers and workers refuse the family if a file differs, is missing, or is "
        "not listed.  Write it anew after each change, where you trust the files.",
        epilog="exit codes: 0 done; 2 wrong command line; 3 files differ from the manifest, or cannot be read",
    )
    parser.add_argument("family", help="folder of the family, or the name of a shipped one")
    parser.add_argument("--check", action="store_true", help="write nothing: say whether the files are those listed")
    try:
        given = parser.parse_args(argv)
    except SystemExit as stop:
        return int(stop.code or 0)
    try:
        print(_check(_folder(given.family)) if given.check else _write(_folder(given.family)))
    except (CloverError, OSError) as error:
        print(f"clover family manifest: {error}", file=sys.stderr)
        return 3
    return 0


def _folder(family: str) -> Path:
    """Return the folder that is meant.  A folder is taken as it is, also while its files differ from its manifest."""
    folder = Path(family).expanduser()
    return folder.resolve() if folder.is_dir() else Path(families.load_family(family).folder)


def _check(folder: Path) -> str:
    checked = manifest.check(folder)
    if checked is None:
        raise ConfigError(f"{folder} has no {manifest.MANIFEST}")
    return f"{folder}: every file is as {manifest.MANIFEST} (SHA-256 {checked.manifest}) lists it"


def _write(folder: Path) -> str:
    text = manifest.text_of(folder)
    (folder / manifest.MANIFEST).write_text(text, encoding="utf-8")
    families.load_family(str(folder))  # it is one, and can be loaded with it
    return f"wrote {folder / manifest.MANIFEST}: {text.count(chr(10))} files"
