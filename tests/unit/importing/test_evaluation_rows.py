"""Rows for a new family come from the folder that is given, and from nowhere else."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from clover.importing.draft import DraftError, DraftVariant, FamilyDraft
from clover.importing.evaluation_rows import with_rows
from clover.types import TensorSpec

DRAFT = FamilyDraft(
    name="new",
    source="a test",
    inputs=(TensorSpec(name="file", datatype="BYTES", shape=(1,), max_bytes=100),),
    outputs=(TensorSpec(name="scores", datatype="FP32", shape=(2,)),),
    variants=(DraftVariant(name="only", kind="python", weights="", comment=""),),
)


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """A folder of files in classes, with a CSV that lists them; beside it lies a file that is nobody's row."""
    folder = tmp_path / "data"
    for name in ("0", "1"):
        (folder / name).mkdir(parents=True)
        for index in range(5):
            (folder / name / f"{index}.txt").write_text("a row")
    lines = [f"{path.relative_to(folder)},{path.parent.name}" for path in sorted(folder.rglob("*.txt"))]
    (tmp_path / "data.csv").write_text("\n".join(["file,label", *(f"data/{line}" for line in lines)]))
    (tmp_path / "secret.txt").write_text("no row")
    return folder


def test_files_of_a_folder_or_a_csv_are_put_into_the_family(rows: Path) -> None:
    (rows / "0" / "again.txt").symlink_to("1.txt")
    for source, count in ((rows, 11), (rows.parent / "data.csv", 10)):
        links = with_rows(DRAFT, source).links
        assert len(links) == count
        assert {path.parent.parent for path in links.values()} == {rows.resolve()}
        assert not any(path.is_symlink() for path in links.values())


@pytest.mark.parametrize("link", ["0/9.txt", "2"], ids=["a file", "a folder of a class"])
def test_a_symbolic_link_out_of_the_folder_is_refused(rows: Path, link: str) -> None:
    target = rows.parent / "secret.txt"
    if link == "2":
        target = rows.parent / "elsewhere"
        target.mkdir()
        (target / "x.txt").write_text("no row")
    (rows / link).symlink_to(target)
    shown = re.escape(f"{rows / link}") + ".* is .*" + re.escape(str(target.resolve())) + ".*: copy it there"
    with pytest.raises(DraftError, match=shown):
        with_rows(DRAFT, rows)


@pytest.mark.parametrize("name", ["../secret.txt", "0/../../secret.txt", "{}/secret.txt", "link.txt"])
def test_a_csv_may_name_no_file_outside_of_its_folder(rows: Path, name: str) -> None:
    (rows / "link.txt").symlink_to("../secret.txt")
    listed = rows / "rows.csv"
    files = [f"0/{index}.txt,0" for index in range(5)] + [f"1/{index}.txt,1" for index in range(5)]
    listed.write_text("\n".join(["file,label", *files, f"{name.format(rows.parent)},1"]))
    with pytest.raises(DraftError, match=r"secret\.txt, outside of .*data: copy it there, or leave it out"):
        with_rows(DRAFT, listed)
