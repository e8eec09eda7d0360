"""How right answers are: by label, or by a function of the family; and what becomes of rows that are partly right."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clover import families
from clover.errors import ConfigError, ProfileError
from clover.profiling.chains import Answers, against, every_chain, play, profile_of
from clover.profiling.row_store import CascadeRows, read, write
from clover.profiling.score import as_array, interval, judge
from clover.types import FamilySpec, TensorSpec
from tests.support.family_folder import write as write_family

METRIC = """
import numpy as np

def near(outputs, labels):
    return np.clip(1.0 - np.abs(outputs["y"].reshape(len(labels)) - labels), 0.0, 1.0)

def halves(outputs, labels):
    return np.full(len(labels), 1.5)

def short(outputs, labels):
    return np.ones(1)

def broken(outputs, labels):
    return outputs["z"]
"""
RIGHT = {"small": np.array([0.2, 0.9, 0.5, 1.0]), "large": np.array([0.8, 0.9, 1.0, 1.0])}
ANSWERS = {name: Answers(np.array([0.1, 0.9, 0.4, 0.8]), right) for name, right in RIGHT.items()}
COSTS = {"small": 1.0, "large": 5.0}


def family(folder: Path, metric: str) -> FamilySpec:
    made = write_family(folder)
    (made / "metrics.py").write_text(METRIC)
    declared = (made / "family.toml").read_text()
    (made / "family.toml").write_text(
        declared.replace('loader = "data:load"', f'loader = "data:load"\nmetric = "{metric}"')
    )
    return families.load_family(str(made))


def test_a_metric_of_the_family_says_how_right_each_row_is(tmp_path: Path) -> None:
    right = judge(family(tmp_path, "metrics:near"))({"y": np.array([[1.0], [2.0], [5.0]])}, np.array([1.0, 2.25, 1.0]))
    assert right.tolist() == [1.0, 0.75, 0.0]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("halves", "gave 1.5: a row is right by 0 to 1"),
        ("short", r"float64 \[1\] for 3 rows"),
        ("broken", "KeyError: 'z'"),
    ],
)
def test_a_metric_that_gives_no_scores_is_refused(name: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match=message):
        judge(family(tmp_path, f"metrics:{name}"))({"y": np.zeros((3, 1))}, np.zeros(3))


def test_a_metric_is_declared_as_loaders_are(tmp_path: Path) -> None:
    for metric, message in (
        ("top2", "evaluation.metric: 'top2' is unknown.* module:function"),
        ("a:b:c", "not of the form module:function"),
    ):
        with pytest.raises(ConfigError, match=message):
            family(tmp_path / metric[0], metric)
    with pytest.raises(ConfigError, match="metric: loader 'nowhere_at_all:f': no module nowhere_at_all"):
        families.check_loaders(family(tmp_path / "n", "nowhere_at_all:f"))


def test_text_is_right_if_it_is_its_label(tmp_path: Path) -> None:
    spec = families.load_family(str(write_family(tmp_path)))
    name = spec.outputs[0].name
    tensor = TensorSpec(name=name, datatype="BYTES", shape=(1,), max_bytes=64)
    rows = as_array(tensor, [b"\x02\0\0\0ja", b"\x02\0\0\0ne"])
    assert rows.shape == (2, 1)
    assert judge(spec)({name: rows}, np.array(["ja", "no"])).tolist() == [True, False]


def test_one_number_a_row_may_have_labels_without_an_axis_for_it(tmp_path: Path) -> None:
    spec = families.load_family(str(write_family(tmp_path)))
    values: dict[str, Any] = {spec.outputs[0].name: np.array([[1.0], [2.0], [3.0]], np.float32)}
    assert judge(spec)(values, np.array([1.0, 5.0, 3.0])).tolist() == [True, False, True]


def test_an_interval_of_partly_right_rows_is_never_too_narrow() -> None:
    rng = np.random.default_rng(3)
    held = 0
    for _ in range(400):
        scores = rng.beta(8.0, 2.0, 60)
        low, high = interval(float(scores.sum()), len(scores))
        held += low <= 80.0 <= high
    assert held >= 0.95 * 400


def test_all_right_and_none_right_lie_in_their_intervals() -> None:
    for rows in range(1, 200):
        assert interval(rows, rows)[1] == 100.0
        assert interval(0, rows)[0] == 0.0


def test_chains_count_rows_that_are_partly_right() -> None:
    # The first and the third row go on to the large variant.
    found = play(ANSWERS, COSTS, ("small", "large"), (0.5,))
    assert found.accuracy == pytest.approx((0.8 + 0.9 + 1.0 + 1.0) / 4)
    for item in every_chain(ANSWERS, COSTS):
        assert item.accuracy == pytest.approx(play(ANSWERS, COSTS, item.chain, item.thresholds).accuracy)
    known = profile_of(ANSWERS, ANSWERS, COSTS)
    assert known.best == "large"
    point = next(each for each in known.points if each.chain == ("small",))
    assert point.accuracy == pytest.approx(65.0)
    assert point.low < 65.0 < point.high
    assert point.against == pytest.approx(against(RIGHT["small"], RIGHT["large"]))
    assert point.against is not None
    assert point.against[0] == pytest.approx(-27.5)


def test_rows_that_are_partly_right_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "kept.npz"
    write(path, CascadeRows(ANSWERS, ANSWERS), "now")
    kept = read(path, "now")
    assert kept is not None
    for name, own in kept.held_out.items():
        np.testing.assert_allclose(own.right, RIGHT[name], rtol=1e-6)
    wrong = {name: Answers(own.scores, own.right * 2) for name, own in ANSWERS.items()}
    write(path, CascadeRows(wrong, wrong), "now")
    assert read(path, "now") is None


def test_an_interval_holds_its_mean_also_if_all_rows_are_right_or_none() -> None:
    for rows in range(1, 300):
        for right in (0.0, float(rows)):
            low, high = interval(right, rows)
            assert low <= 100.0 * right / rows <= high
