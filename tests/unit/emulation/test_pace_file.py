"""Pace files: what they say, and every way of being wrong."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clover.emulation.profiles import pace
from clover.errors import ConfigError
from clover.types import FamilySpec, TensorSpec, VariantSpec

SPEC = FamilySpec(
    name="toy",
    inputs=(TensorSpec(name="x", datatype="FP32", shape=(1,)),),
    outputs=(TensorSpec(name="y", datatype="FP32", shape=(1,)),),
    variants=(VariantSpec(name="small", loader="m:f"), VariantSpec(name="large", loader="m:f")),
    max_batch=8,
)
PROFILES = {"1g.5gb": 1, "7g.40gb": 7}


def row(**changes: Any) -> dict[str, Any]:
    values = {"family": "toy", "variant": "small", "profile": "1g.5gb", "batch": 8, "ms": 20.0, "watts": 17.0}
    return values | changes


def written(folder: Path, *rows: dict[str, Any], **changes: Any) -> Path:
    path = folder / "pace.json"
    path.write_text(json.dumps({"method": "analytical", "source": "made up", "rows": list(rows)} | changes))
    return path


def test_a_file_is_read_with_what_the_board_really_draws(tmp_path: Path) -> None:
    rows = (row(batch=8, ms=30.0, drawn_watts=25.0), row(batch=1, ms=10.0), row(family="other"))
    file = pace.load(written(tmp_path, *rows))
    assert file.source == "made up"
    drawn = file.paces_of("toy")
    assert list(drawn) == [("small", "1g.5gb")]
    assert drawn["small", "1g.5gb"].batches == (1, 8)
    assert drawn["small", "1g.5gb"].ms == (10.0, 30.0)
    assert drawn["small", "1g.5gb"].watts == (17.0, 25.0), "without drawn_watts a board draws what is expected"
    expected = pace.as_pace(pace.by_place(file.rows_of("toy"))["small", "1g.5gb"])
    assert expected.watts == (17.0, 17.0), "what a profile expects does not know what is drawn"


@pytest.mark.parametrize(
    ("rows", "changes", "words"),
    [
        ((row(ms=0.0),), {}, "ms must be above zero"),
        ((row(ms=-1.0),), {}, "ms must be above zero"),
        ((row(watts=-0.1),), {}, "watts must be at least zero"),
        ((row(drawn_watts=-0.1),), {}, "drawn_watts must be at least zero"),
        ((row(batch=0),), {}, "at least one row"),
        ((row(), row(ms=21.0)), {}, "row 2 .* repeats row 1"),
        ((row(speed=3),), {}, "malformed: .*speed"),
        ((row(batch="8"),), {}, "malformed"),
        ((), {}, "has no rows"),
        ((row(),), {"source": " "}, "where its figures come from"),
        ((row(),), {"method": "guessed"}, "malformed: .*guessed"),
        ((row(),), {"rows": None}, "malformed"),
    ],
)
def test_what_is_wrong_is_said_with_the_path(
    tmp_path: Path, rows: tuple[dict[str, Any], ...], changes: dict[str, Any], words: str
) -> None:
    path = written(tmp_path, *rows, **changes)
    with pytest.raises(ConfigError, match=words) as caught:
        pace.load(path)
    assert str(path) in str(caught.value)


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.json cannot be read: No such file"):
        pace.load(tmp_path / "none.json")
    (tmp_path / "bad.json").write_bytes(b"\xff\xfe{")
    with pytest.raises(ConfigError, match=r"bad\.json is malformed"):
        pace.load(tmp_path / "bad.json")
    (tmp_path / "bad.json").write_text('{"method": "analytical", "source": "x", "rows": [NaN]}')
    with pytest.raises(ConfigError, match=r"bad\.json is malformed"):
        pace.load(tmp_path / "bad.json")


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_no_bytes_do_more_than_be_refused(data: bytes) -> None:
    with pytest.raises(ConfigError, match=r"malformed|no rows|where its figures"):
        pace._parse(data, "p")


def test_rows_must_fit_family_and_device(tmp_path: Path) -> None:
    fitting = (row(), row(profile="7g.40gb", ms=8.0), row(variant="large", profile="7g.40gb"), row(profile="1g.10gb"))
    file = pace.load(written(tmp_path, *fitting))
    found = pace.rows_of(file, SPEC, PROFILES, "F")
    assert sorted(found) == [("large", "7g.40gb"), ("small", "1g.5gb"), ("small", "7g.40gb")], "large has no 1g.5gb"
    file = pace.load(written(tmp_path, row(family="other")))
    assert pace.rows_of(file, SPEC, PROFILES, "F") == {}
    file = pace.load(written(tmp_path, *fitting, row(variant="huge")))
    with pytest.raises(ConfigError, match=r"file F names a variant 'huge' of toy, which has small, large"):
        pace.rows_of(file, SPEC, PROFILES, "F")
    file = pace.load(written(tmp_path, row(), row(variant="large", profile="3g.20gb")))
    with pytest.raises(ConfigError, match=r"file F has no row of large \(toy\) for any of 1g\.5gb, 7g\.40gb"):
        pace.rows_of(file, SPEC, PROFILES, "F")


def test_the_table_that_comes_along_is_whole() -> None:
    file = pace.shipped()
    assert file.method == "analytical"
    assert "not measured" in file.source
    variants: dict[str, set[str]] = {}
    for item in file.rows:
        variants.setdefault(item.family, set()).add(item.variant)
    assert {name: len(found) for name, found in variants.items()} == {"efficientnet": 4, "albert": 4, "yolov5": 3}
    places = pace.by_place(file.rows)
    sizes = ("1g.5gb", "2g.10gb", "3g.20gb", "4g.20gb", "7g.40gb")
    assert len(places) == 11 * 5 - 1
    assert ("yolov5x6", "1g.5gb") not in places, "it needs more memory than that slice has"
    for name in set().union(*variants.values()):
        mine = [places[name, size][0] for size in sizes if (name, size) in places]
        assert all(later.ms <= earlier.ms * 1.05 for earlier, later in itertools.pairwise(mine))
        assert all(later.watts > earlier.watts for earlier, later in itertools.pairwise(mine))
