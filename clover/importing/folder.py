"""Writing a draft into a new folder: all of it, checked as a server would check it, or nothing."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from clover import families
from clover.errors import ConfigError
from clover.families import FILE, check_loaders
from clover.importing.draft import DraftError, FamilyDraft, template, toml_of
from clover.types import FamilySpec

MOST_FILES = 10_000
MOST_BYTES = 64 << 30
"""What is copied into one family, at most."""

MOST_TEXT_BYTES = 4 << 20
"""Bytes of a text that is read to make a draft, at most."""


def inside(path: Path, *homes: Path) -> Path:
    """Return the regular file that `path` leads to, without links, in one of the folders `homes`.

    Raises DraftError for anything else: a family is read by the model and by everybody who gets the folder, and links
    in the folder of a model may come from others.
    """
    name = path.relative_to(homes[0]).as_posix() if path.is_relative_to(homes[0]) else str(path)
    try:
        resolved = path.resolve(strict=True)
        mode = resolved.stat().st_mode
    except (OSError, RuntimeError, ValueError) as error:  # a circle of links, until Python 3.13; a null byte
        raise DraftError(f"{name} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if not any(resolved.is_relative_to(home.resolve()) for home in homes):
        raise DraftError(f"{name} is {resolved}, outside of {homes[0]}: put a copy of it there, or leave it out")
    if not stat.S_ISREG(mode):
        raise DraftError(f"{name} is no regular file")
    return resolved


def below(folder: Path, home: Path) -> dict[str, Path]:
    """Return the files below `folder`, which lie in `home` (see `inside`), by their path in `folder`.  Raises
    DraftError, also for links to folders."""
    if not folder.resolve().is_relative_to(home.resolve()):
        raise DraftError(f"{folder} is {folder.resolve()}, outside of {home}: put a copy of it there")
    files: dict[str, Path] = {}
    for at, folders, names in os.walk(folder):
        for name in folders:
            if Path(at, name).is_symlink():
                raise DraftError(f"{Path(at, name).relative_to(home)} is a link to a folder: put a copy of it there")
        for name in names:
            path = Path(at, name)
            files[path.relative_to(folder).as_posix()] = inside(path, home)
            if len(files) > MOST_FILES:
                raise DraftError(f"{folder} holds more than {MOST_FILES} files")
    return files


def text_in(path: Path, home: Path) -> str:
    """Return the text of a file in `home` (see `inside`).  Raises DraftError if it is too large, or not UTF-8."""
    file = inside(path, home)
    name = path.relative_to(home).as_posix()
    if (size := file.stat().st_size) > MOST_TEXT_BYTES:
        raise DraftError(f"{name} has {size} bytes, and {MOST_TEXT_BYTES} at most are read")
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DraftError(f"{name} cannot be read: {error}") from error


def check_target(folder: Path) -> None:
    """Raise DraftError if a family cannot be written to `folder`: nothing may be there, its parent must be."""
    if folder.exists() or folder.is_symlink():
        raise DraftError(f"{folder} is there already, and nothing is overwritten: name another folder, or remove it")
    if not folder.parent.is_dir():
        raise DraftError(f"{folder.parent} is no folder: make it first, or name another place")


def link_or_copy(source: Path, target: Path) -> None:
    """Make `target` another name of the file `source`, or a copy on another file system.  A symbolic link would not do:
    the process that reads rows may follow none out of the folder."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def write(draft: FamilyDraft, folder: Path, link: Callable[[Path, Path], None] = link_or_copy) -> FamilySpec:
    """Write `draft` as the new family `folder` and return its declaration; `link` puts rows there.  Raises DraftError;
    nothing is left then."""
    check_target(folder)
    copies = _files_of(draft.copies)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as place:
        made = Path(place) / folder.name
        made.mkdir()
        for path, text in {FILE: toml_of(draft), "README.md": readme_of(draft), **draft.files}.items():
            target = made / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(text if isinstance(text, bytes) else text.encode())
        for path, source in copies.items():
            target = made / path
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
        for path, source in draft.links.items():
            target = made / path
            target.parent.mkdir(parents=True, exist_ok=True)
            link(source, target)
        try:
            check_loaders(families.load_family(str(made)))
        except ConfigError as error:
            reason = str(error).replace(str(made.resolve()), str(folder))
            raise DraftError(f"the family that would be written is refused: {reason}") from error
        os.rename(made, folder)
    return families.load_family(str(folder))


def _files_of(copies: Mapping[str, Path]) -> dict[str, Path]:
    """Return the regular files that `copies`, files and folders, consist of.  Raises DraftError if that is too much."""
    files: dict[str, Path] = {}
    for path, source in copies.items():
        if source.is_dir():
            files |= {f"{path}/{name}": file for name, file in below(source, source).items()}
        else:
            files[path] = inside(source, source.parent, source.resolve().parent)
    if (total := sum(file.stat().st_size for file in files.values())) > MOST_BYTES:
        raise DraftError(f"its files have {total / 1e6:.0f} MB, and {MOST_BYTES / 1e6:.0f} MB at most are copied")
    return files


def readme_of(draft: FamilyDraft) -> str:
    """Return the README of a family."""
    rows = [
        f"| `{variant.name}` | {variant.comment.splitlines()[0] if variant.comment else ''} |"
        for variant in draft.variants
    ]
    notes = [f"- {note}" for note in draft.notes] or ["- nothing to note"]
    tensors = "; ".join(
        f"{verb} {', '.join(f'`{variant.name}` {variant.datatype} {list(variant.shape)}' for variant in listed)}"
        for verb, listed in (("takes", draft.sent), ("gives", draft.outputs))
    )
    return template(
        "readme",
        name=draft.name,
        source=draft.source,
        description=draft.description or "No description yet.",
        variants="\n".join(rows),
        notes="\n".join(notes),
        tensors=tensors,
        rows=_rows(draft),
    )


def _rows(draft: FamilyDraft) -> str:
    metric = (draft.evaluation or {}).get("metric", "")
    if not draft.evaluation:
        return "None yet: write `data.py`, or say the published `accuracy` of each variant in `family.toml`."
    if metric == "agreement":
        return (
            'Without labels: "accuracy" is the share of rows on which a variant answers as the last, most expensive '
            "one does. It is a proxy, and labelled so wherever it is shown."
        )
    return "`data.py` reads the labelled rows; every second one is held out, and accuracies are those on these."
