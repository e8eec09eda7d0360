"""Rows that a new family is measured with: a folder of labelled files, a CSV, or rows without labels.

Labelled files: `FOLDER/CLASS/FILE`.  A CSV has a column `label`.  If its one other column is `file`, it lists files; if
`text`, texts; otherwise its columns are numbers, the features of a row.  Without labels (files without class folders, a
CSV without `label`, or nothing at all) the family is measured by how often variants agree with the best of them: a
proxy, labelled so.
"""

from __future__ import annotations

import csv
import io
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from clover.importing.draft import DraftError, FamilyDraft, template
from clover.types import TensorSpec

IMAGES = {".jpg", ".jpeg", ".png"}
LEAST = 8
"""Rows, at least."""
_MOST_BYTES = 4_000_000
"""Bytes of a picture that clients may send."""

Row = tuple[list[str], str]
"""The cells of a row (a file, a text, or features), and its label ("" if there is none)."""


def with_rows(draft: FamilyDraft, source: Path | None) -> FamilyDraft:
    """Return the draft with the rows of `source`, or made-up ones without it.  Raises DraftError."""
    if source is None:
        text = template("rows_made_up")
        return replace(
            draft.noting(
                'no labels: "accuracy" is agreement with the most expensive variant, on made-up rows; give rows of '
                "yours with --evaluate (agreement on noise says little of agreement on what people send)"
            ),
            evaluation={"loader": "data:load", "metric": "agreement"},
            files={**draft.files, "data.py": text},
        )
    if source.is_dir():
        kind, rows = "file", _folder(source)
    elif source.is_file():
        kind, rows = _table(source)
    else:
        raise DraftError(f"--evaluate: there is no {source}: a folder with a folder of files for each class, or a CSV")
    if len(rows) < LEAST:
        raise DraftError(f"--evaluate: {source} has {len(rows)} rows, and at least {LEAST} are needed")
    draft = _fitting(draft, kind, rows, source)
    labelled = all(label for _, label in rows)
    if not labelled and any(label for _, label in rows):
        raise DraftError(
            f"--evaluate: some rows of {source} have a label and others none: give all of them one, or none"
        )
    if labelled:
        draft, rows = _with_number_rows(draft, rows, source)
    else:
        draft = draft.noting('no labels: "accuracy" is agreement with the most expensive variant, a proxy')
    links: dict[str, Path] = {}
    if kind == "file":
        links = {_place(index, cells[0]): Path(cells[0]) for index, (cells, _) in enumerate(rows)}
        rows = [([place], label) for place, (_, label) in zip(links, rows, strict=True)]
    return replace(
        draft,
        links=links,
        evaluation={"loader": "data:load", **({} if labelled else {"metric": "agreement"})},
        files={
            **draft.files,
            "rows.csv": _write_rows(rows),
            "data.py": template(f"rows_{kind}", labelled=labelled, tensor=draft.sent[0].datatype),
        },
    )


def _place(index: int, file: str) -> str:
    """Return where a row's file is put in the family, which is all that its code may read.  It bears no name that means
    something there."""
    ending = Path(file).suffix.lower()
    return f"rows/{index}{ending if ending in {*IMAGES, '.npy', '.wav', '.txt'} else ''}"


def _folder(source: Path) -> list[Row]:
    """Return the files of a folder; their label is the folder that they lie in."""
    classes = sorted(path for path in source.iterdir() if path.is_dir() and not path.name.startswith("."))
    files = [path for path in source.iterdir() if path.is_file() and not path.name.startswith(".")]
    if classes and files:
        raise DraftError(f"--evaluate: {source} holds files and folders: files lie in a folder of their class")
    if files:
        return [([_within(source, path)], "") for path in sorted(files)]
    return [([_within(source, path)], one.name) for one in classes for path in sorted(one.rglob("*")) if path.is_file()]


def _within(folder: Path, file: Path) -> str:
    """Return where a file of rows lies, without symbolic links.  Raises DraftError if that is not below `folder`: what
    is put into the family can be read by everybody who gets it, and a list of rows may come from others."""
    path_in_folder = file.resolve()
    if not path_in_folder.is_relative_to(folder.resolve()):
        raise DraftError(
            f"--evaluate: {file} is {path_in_folder}, outside of {folder}: copy it there, or leave it out "
            "(files of rows lie in the folder that is given, or in that of the CSV)"
        )
    return str(path_in_folder)


def _table(source: Path) -> tuple[str, list[Row]]:
    """Return the kind of a CSV's rows ("file", "text" or "numbers"), and the rows."""
    try:
        with source.open(newline="", encoding="utf-8-sig") as file:
            lines = csv.DictReader(file)
            head, table = list(lines.fieldnames or []), list(lines)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DraftError(f"--evaluate: {source} is no CSV in UTF-8: {error}") from error
    columns = [one for one in head if one != "label"]
    if not columns or len(set(head)) < len(head):
        raise DraftError(f"--evaluate: {source}: the first line names the columns, each once: features and label")
    rows = []
    for number, line in enumerate(table, 2):
        if None in line or None in line.values():
            raise DraftError(f"--evaluate: {source}, line {number}: it has not {len(head)} cells")
        rows.append(([line[one] for one in columns], line.get("label", "").strip()))
    if columns == ["text"]:
        return "text", rows
    if columns == ["file"]:
        rows = [([_within(source.parent, source.parent / cells[0])], label) for cells, label in rows]
        if lost := next((cells[0] for cells, _ in rows if not Path(cells[0]).is_file()), ""):
            raise DraftError(f"--evaluate: {source} names {lost}, which is no file")
        return "file", rows
    for number, (cells, _) in enumerate(rows, 2):
        try:
            [float(cell) for cell in cells]
        except ValueError as error:
            raise DraftError(f"--evaluate: {source}, line {number}: {error}: features are numbers") from error
    return "numbers", rows


def _fitting(draft: FamilyDraft, kind: str, rows: Sequence[Row], source: Path) -> FamilyDraft:
    """Return the draft, which takes rows of this kind; pictures get steps.  Raises DraftError if it does not."""
    if len(draft.sent) != 1:
        raise DraftError(f"--evaluate: the family takes {len(draft.sent)} tensors a row: write data.py by hand")
    takes = draft.sent[0]
    shown = f"the family takes {takes.datatype} {list(takes.shape)}"
    if kind == "numbers":
        if takes.datatype == "BYTES" or takes.shape != (len(rows[0][0]),):
            raise DraftError(f"--evaluate: {source} has {len(rows[0][0])} features a row, and {shown}")
        return draft
    if kind == "text":
        if takes.datatype != "BYTES":
            raise DraftError(f"--evaluate: {source} holds texts, and {shown}")
        return draft
    endings = {Path(cells[0]).suffix.lower() for cells, _ in rows}
    if takes.datatype == "BYTES":
        return draft
    if endings == {".npy"}:
        return draft
    channels = takes.shape[0] if len(takes.shape) == 3 else 0
    if endings <= IMAGES and takes.datatype == "FP32" and channels in (1, 3) and takes.bound[1] == takes.bound[2]:
        side = takes.bound[1]
        mean, std = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]) if channels == 3 else ([0.0], [1.0])
        named = TensorSpec(name=takes.name, datatype="FP32", shape=(channels, side, side))
        return replace(
            draft.noting(
                f"[steps] makes pixels of pictures as is usual (divided by 255, less {mean}, divided by {std}): "
                "if the model was trained with others, change them in family.toml"
            ),
            inputs=(named,),
            steps=_image_steps(side, mean, std),
        )
    raise DraftError(f"--evaluate: {source} holds {', '.join(sorted(endings)) or 'files'}, and {shown}: use .npy files")


def _image_steps(side: int, mean: Sequence[float], std: Sequence[float]) -> dict[str, Any]:
    """Return [steps] from a JPEG or PNG to pixels."""
    return {
        "run": "worker",
        "inputs": [TensorSpec(name="image", datatype="BYTES", shape=(1,), max_bytes=_MOST_BYTES)],
        "before": [
            {"step": "decode-image", **({"mode": "L"} if len(mean) == 1 else {})},
            {"step": "resize", "size": side, "method": "bilinear"},
            {"step": "crop", "size": side},
            {"step": "normalise", "mean": mean, "std": std},
        ],
    }


def _with_number_rows(draft: FamilyDraft, rows: Sequence[Row], source: Path) -> tuple[FamilyDraft, list[Row]]:
    """Return the draft and its rows with the classes as the numbers that the model answers.

    A class is the label of an output, a number, or else the place of its name among the sorted ones.
    """
    classes = sorted({label for _, label in rows})
    given = draft.outputs[0]
    labels = list(given.labels)
    count = given.shape[0] if len(given.shape) == 1 else 0
    if labels and set(classes) <= set(labels):
        number = {name: labels.index(name) for name in classes}
    elif all(name.isdecimal() for name in classes):
        number = {name: int(name) for name in classes}
    elif count and len(classes) == count:
        number = {name: index for index, name in enumerate(classes)}
        named = replace_labels(given, classes)
        draft = replace(draft, outputs=(named, *draft.outputs[1:])).noting(
            f"classes are numbered as their names are sorted: {classes[0]} is 0, {classes[-1]} is {count - 1}"
        )
    else:
        unknown = [name for name in classes if labels and name not in labels]
        known = f", and {', '.join(unknown[:3])} is none of its labels" if unknown else ""
        raise DraftError(
            f"--evaluate: {source} has {len(classes)} classes, the model answers {count or 'no'} values{known}: "
            "name the classes by their labels or numbers"
        )
    if count > 1 and max(number.values()) >= count:
        raise DraftError(
            f"--evaluate: {source} has a class {max(number.values())}, the model answers {count}: 0 to {count - 1}"
        )
    return draft, [(cells, str(number[label])) for cells, label in rows]


def replace_labels(tensor: TensorSpec, labels: Sequence[str]) -> TensorSpec:
    """Return an output with labels."""
    from msgspec.structs import replace as with_fields

    return with_fields(tensor, labels=tuple(labels))


def _write_rows(rows: Sequence[Row]) -> str:
    """Return the CSV of the family: cells, label, and split, every second row of a shuffled order."""
    order = list(rows)
    random.Random(0).shuffle(order)
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    for index, (cells, label) in enumerate(order):
        writer.writerow(["held_out" if index % 2 else "calibration", label, *cells])
    return out.getvalue()
