"""Scores of answers: what a family may declare, and what comes of it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from clover import families
from clover.confidence import ScoreError, scorer, writer
from clover.errors import ConfigError
from clover.types import ConfidenceSpec, FamilySpec, TensorSpec, VariantSpec
from tests.reference.scores import softmax

LOGITS = st.lists(st.lists(st.floats(-30, 30, width=32), min_size=3, max_size=3), min_size=1, max_size=6)


def spec(confidence: ConfidenceSpec | None = None, folder: str = "") -> FamilySpec:
    return FamilySpec(
        name="toy",
        inputs=(TensorSpec(name="x", datatype="FP32", shape=(1,)),),
        outputs=(
            TensorSpec(name="label", datatype="INT64", shape=(1,)),
            TensorSpec(name="y", datatype="FP32", shape=(3,)),
        ),
        variants=(VariantSpec(name="small", loader="m:f"),),
        confidence=confidence,
        folder=folder,
    )


def answers(*rows: tuple[float, ...]) -> list[Any]:
    return [np.zeros((len(rows), 1), np.int64), np.array(rows, np.float32)]


def test_a_family_without_confidence_has_no_scores() -> None:
    assert scorer(spec()) is None
    assert writer(spec()) is None


@pytest.mark.parametrize(("kind", "expected"), [("top", [0.7, 0.5]), ("margin", [0.5, 0.0])])
def test_built_in_scores(kind: str, expected: list[float]) -> None:
    score = scorer(spec(ConfidenceSpec(kind=kind, output="y")))
    assert score is not None
    found = score(answers((0.7, 0.2, 0.1), (0.5, 0.5, 0.0)))
    assert found.dtype == np.float32
    assert found.tolist() == pytest.approx(expected)


@given(LOGITS)
def test_scores_are_between_nothing_and_one_and_logits_are_made_probabilities(rows: list[list[float]]) -> None:
    logits = np.array(rows, np.float32)
    probabilities = np.array([softmax(row) for row in rows], np.float32)
    assert probabilities.sum(axis=1) == pytest.approx(np.ones(len(rows)), abs=1e-5)
    for kind in families.CONFIDENCES:
        of_logits = scorer(spec(ConfidenceSpec(kind=kind, output="y", logits=True)))
        of_probabilities = scorer(spec(ConfidenceSpec(kind=kind, output="y")))
        assert of_logits is not None
        assert of_probabilities is not None
        plain = of_probabilities([None, probabilities])
        assert ((plain >= -1e-5) & (plain <= 1 + 1e-5)).all()
        assert of_logits([None, logits]).tolist() == pytest.approx(plain.tolist(), abs=1e-6)


@pytest.mark.parametrize(
    "output",
    [
        np.array([[3.0, 0.0, 1.0, 2.0]], np.float64),
        np.array([[3.0, 0.0, 1.0, 2.0]], np.float16),
        np.array([[3.0, 0.0, 1.0, 2.0]], ">f4"),
        np.array([[[3.0, 0.0], [1.0, 2.0]]], np.float32),
        np.array([[3.0], [0.0], [1.0], [2.0]], np.float32).T,
        np.array([[3.0, 9.0, 0.0, 9.0, 1.0, 9.0, 2.0, 9.0]], np.float32)[:, ::2],
        np.frombuffer(b"\0" + np.array([3.0, 0.0, 1.0, 2.0], np.float32).tobytes(), np.float32, 4, 1).reshape(1, 4),
    ],
)
def test_floats_of_any_kind_and_order_are_scored(output: NDArray[Any]) -> None:
    score = scorer(spec(ConfidenceSpec(kind="margin", output="y", logits=True)))
    assert score is not None
    found = score([None, output])
    assert found.dtype == np.float32
    assert found.tolist() == pytest.approx([0.4070], abs=1e-4)


@pytest.mark.parametrize("datatype", [np.float32, np.float64])
def test_scores_are_written_to_slots(tmp_path: Path, datatype: type) -> None:
    outputs: list[Any] = [None, np.array([[0.7, 0.2, 0.1], [math.nan, 0.5, 0.5], [0.25, 0.25, 0.5]], datatype)]
    slots = np.array([3, 0, 2], np.uint32)
    for one in (spec(ConfidenceSpec(kind="top", output="y")), own(tmp_path, "return output.max(axis=1)")):
        write, into = writer(one), np.full((5, 2), 7.0, np.float32)[:, 1]
        assert write is not None
        write(outputs, slots, into)
        assert into.tolist() == pytest.approx([math.nan, 7.0, 0.5, 0.7, 7.0], nan_ok=True)
        with pytest.raises(IndexError):
            write(outputs, slots + np.uint32(2), into)


def test_the_score_of_a_slot_that_holds_no_probabilities_is_told() -> None:
    write = writer(spec(ConfidenceSpec(kind="top", output="y")))
    assert write is not None
    with pytest.raises(ScoreError, match="output 'y' gave a score of 3,"):
        write(answers((0.7, 0.2, 0.1), (3.0, 1.0, 0.0)), np.array([1, 0], np.uint32), np.zeros(2, np.float32))


def test_a_margin_of_one_class_is_told() -> None:
    score = scorer(spec(ConfidenceSpec(kind="margin", output="y")))
    assert score is not None
    with pytest.raises(ValueError, match="a margin two"):
        score([None, np.ones((1, 1), np.float32)])


def own(tmp_path: Path, body: str) -> FamilySpec:
    (tmp_path / "sure.py").write_text(f"import numpy as np\ndef score(output):\n    {body}\n")
    return spec(ConfidenceSpec(kind="sure:score", output="y"), str(tmp_path))


def test_a_function_of_ones_own(tmp_path: Path) -> None:
    score = scorer(own(tmp_path, "return output[:, 0] * 2"))
    assert score is not None
    found = score(answers((0.25, 0, 0), (0.5, 0, 0)))
    assert (found.tolist(), found.dtype) == ([0.5, 1.0], np.float32)


@pytest.mark.parametrize(
    "body",
    [
        "return output",
        "return output[:1, 0]",
        "return ['a'] * len(output)",
        "return output[:, 0] * np.nan",
        "return output[:, 0] + np.inf",
    ],
)
def test_a_function_that_gives_no_scores_is_no_confidence(tmp_path: Path, body: str) -> None:
    score = scorer(own(tmp_path, body))
    assert score is not None
    with pytest.raises(ScoreError, match=r"confidence gave|the function gave (nan|inf)"):
        score(answers((0.25, 0, 0), (0.5, 0, 0)))


def test_an_odd_row_goes_on_and_its_neighbours_are_spared(tmp_path: Path) -> None:
    """What a client sends must not fail the rows of others that share its batch."""
    odd = answers((0.7, 0.2, 0.1), (math.nan, 0.5, 0.5), (0.1, math.inf, 0.2))
    for kind in families.CONFIDENCES:
        for logits in (False, True):
            score = scorer(spec(ConfidenceSpec(kind=kind, output="y", logits=logits)))
            assert score is not None
            found = score(odd)
            assert np.isnan(found[1:]).all(), "below every threshold"
            assert found[0] == score(answers((0.7, 0.2, 0.1)))[0]
    score = scorer(own(tmp_path, "return output.max(axis=1)"))
    assert score is not None
    found = score(odd)
    assert found[0] == np.float32(0.7)
    assert np.isnan(found[1:]).all()


@pytest.mark.parametrize("row", [(3.0, 1.0, -2.0), (-3.0, -4.0, -5.0)])
def test_an_output_that_holds_no_probabilities_is_told(row: tuple[float, ...]) -> None:
    score = scorer(spec(ConfidenceSpec(kind="top", output="y")))
    assert score is not None
    with pytest.raises(ScoreError, match=r"output 'y' gave a score of -?3, so it holds no probabilities"):
        score(answers(row))
    assert score(answers((0.0, 1.004, 0.0)))[0] > 1.0, "rounding of half precision is let pass"


def test_a_class_that_is_ruled_out_is_a_class_like_another() -> None:
    score = scorer(spec(ConfidenceSpec(kind="top", output="y", logits=True)))
    assert score is not None
    assert score(answers((-math.inf, 0.0, 0.0))).tolist() == [0.5]


def test_a_function_that_is_not_there_is_told_at_start(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no function"):
        scorer(
            msgspec.structs.replace(
                own(tmp_path, "return 0"), confidence=ConfidenceSpec(kind="sure:scores", output="y")
            )
        )


def test_the_documented_functions_score(tmp_path: Path) -> None:
    text = (Path(__file__).resolve().parents[2] / "docs" / "families.md").read_text()
    code = text.partition('kind = "sure:span"')[2].partition("```python\n")[2].partition("```")[0]
    (tmp_path / "sure.py").write_text(code)
    for kind, output, expected in (
        ("sure:span", np.log([[[0.5, 0.5], [0.9, 0.1]], [[1.0, 1e-9], [1.0, 1e-9]]]), [0.45, 1.0]),
        ("sure:best_box", [[0.2, 0.7, 0.1], [0.0, 0.0, 0.0]], [0.7, 0.0]),
    ):
        score = scorer(spec(ConfidenceSpec(kind=kind, output="y"), str(tmp_path)))
        assert score is not None
        assert score([None, np.array(output, np.float32)]).tolist() == pytest.approx(expected, abs=1e-6)


# --- what a family declares -------------------------------------------------------------------------------------------

TOML = """
name = "toy"
inputs = [{ name = "x", datatype = "FP32", shape = [1] }]
outputs = [{ name = "y", datatype = "FP32", shape = [3] }, { name = "one", datatype = "INT64", shape = [4] }]
[[variants]]
name = "a"
loader = "model:load"
"""


def declared(folder: Path, confidence: str) -> FamilySpec:
    (folder / "family.toml").write_text(TOML + f"[confidence]\n{confidence}\n")
    (folder / "model.py").write_text("def load(): ...\ndef score(): ...\n")
    return families.load_family(str(folder))


def test_a_declaration_is_read(tmp_path: Path) -> None:
    assert declared(tmp_path, "").confidence == ConfidenceSpec()
    found = declared(tmp_path, 'kind = "margin"\noutput = "y"\nlogits = true')
    assert found.confidence == ConfidenceSpec(kind="margin", output="y", logits=True)
    assert declared(tmp_path, 'kind = "model:score"\noutput = "one"').confidence is not None


@pytest.mark.parametrize(
    ("confidence", "text"),
    [
        ('kind = "topp"', r"'topp' is unknown \(did you mean top\?\)"),
        ('output = "z"', "there is no output 'z'"),
        ('output = "one"', "needs several floating-point numbers"),
        ('kind = "model:"', "not of the form module:function"),
        ('kinds = "top"', "unknown key"),
        ("logits = 1", "expected `bool`"),
    ],
)
def test_a_declaration_that_makes_no_sense_is_refused(tmp_path: Path, confidence: str, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        declared(tmp_path, confidence)


def test_a_module_that_is_not_there_is_told_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no module nowhere"):
        families.check_loaders(declared(tmp_path, 'kind = "nowhere:score"'))


def test_another_confidence_is_another_family_but_no_other_artifact(tmp_path: Path) -> None:
    """It makes a new profile; what was compiled stays."""
    one, other = declared(tmp_path, 'kind = "top"'), declared(tmp_path, 'kind = "margin"')
    assert one.digest != other.digest
    assert families.digest_of_variant(one, "a") == families.digest_of_variant(other, "a")
