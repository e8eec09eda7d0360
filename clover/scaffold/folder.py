"""Writing a draft into a new folder: all of it, checked as a server would check it, or nothing."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from clover import families
from clover.errors import ConfigError
from clover.families import FILE, check_loaders
from clover.scaffold.draft import DraftError, FamilyDraft, template, toml_of
from clover.types import FamilySpec


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
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as place:
        made = Path(place) / folder.name
        made.mkdir()
        for path, text in {FILE: toml_of(draft), "README.md": readme_of(draft), **draft.files}.items():
            target = made / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(text if isinstance(text, bytes) else text.encode())
        for path, source in draft.copies.items():
            target = made / path
            target.parent.mkdir(parents=True, exist_ok=True)
            if source.is_dir():
                shutil.copytree(source, target, dirs_exist_ok=True)
            else:
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


def readme_of(draft: FamilyDraft) -> str:
    """Return the README of a family."""
    rows = [f"| `{one.name}` | {one.comment.splitlines()[0] if one.comment else ''} |" for one in draft.variants]
    notes = [f"- {note}" for note in draft.notes] or ["- nothing to note"]
    tensors = "; ".join(
        f"{verb} {', '.join(f'`{one.name}` {one.datatype} {list(one.shape)}' for one in listed)}"
        for verb, listed in (("takes", draft.sent), ("gives", draft.given))
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
        return "None: accuracies are those that were published (`accuracy` in `family.toml`)."
    if metric == "agreement":
        return (
            'Without labels: "accuracy" is the share of rows on which a variant answers as the last, most expensive '
            "one does. It is a proxy, and labelled so wherever it is shown."
        )
    return "`data.py` reads the labelled rows; every second one is held out, and accuracies are those on these."
