"""How sure a variant is: built-in scores by their definitions, functions of a family's own, and what is refused."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clover import confidence, families
from clover.errors import ConfigError
from clover.types import ConfidenceSpec, FamilySpec, TensorSpec, VariantSpec

ROOT = Path(__file__).resolve().parents[2]
KINDS = families.CONFIDENCE_KINDS


def spec_of(kind: str = "top", folder: str = "", **options: Any) -> FamilySpec:
    datatype = options.pop("datatype", "FP32")
    return FamilySpec(
        name="f",
        inputs=(TensorSpec(name="x", datatype="FP32", shape=(1,)),),
        outputs=(
            TensorSpec(name="tag", datatype="INT32", shape=(1,)),
            TensorSpec(name="y", datatype=datatype, shape=(3,)),
        ),
        variants=(VariantSpec(name="v", loader="m:f"),),
        confidence=ConfidenceSpec(kind=kind, **({"output": "y"} if ":" not in kind else {}), **options),
        folder=folder,
    )


def scores(values: Any, kind: str = "top", temperature: float = 1.0, dtype: Any = np.float32, **options: Any) -> Any:
    rows = np.asarray(values, dtype)
    return confidence.scorer(spec_of(kind, **options), temperature)([np.zeros((len(rows), 1), np.int32), rows])


def plain(p: list[float], kind: str) -> float:
    """The definitions, a row at a time."""
    if kind == "top":
        return max(p)
    if kind == "margin":
        first, second, *_ = sorted(p, reverse=True)
        return first - second
    return 1.0 + sum(x * np.log(x) for x in p if x > 0) / np.log(len(p))


rows_of_logits = st.lists(st.tuples(*[st.floats(-8, 8, width=32)] * 3), min_size=1, max_size=8)


@pytest.mark.parametrize("kind", KINDS)
@given(rows=rows_of_logits, temperature=st.sampled_from([0.5, 1.0, 2.5]))
def test_built_in_scores_are_their_definitions(kind: str, rows: Any, temperature: float) -> None:
    logits = np.array(rows, np.float32)
    soft = np.exp(logits.astype(float) / temperature)
    p = soft / soft.sum(axis=1, keepdims=True)
    expected = [plain(list(row), kind) for row in p]
    found = scores(logits, kind, temperature, logits=True)
    assert found.dtype == np.float32
    assert found.shape == (len(rows),)
    np.testing.assert_allclose(found, np.clip(expected, 0, 1), atol=2e-5)
    # Probabilities say the same as the logits they came from.
    q = np.exp(logits.astype(float))
    q = (q / q.sum(axis=1, keepdims=True)).astype(np.float32)
    np.testing.assert_allclose(scores(q, kind, temperature), found, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_surest_and_least_sure(kind: str) -> None:
    sure, unsure = scores([[0.0, 1.0, 0.0], [1 / 3, 1 / 3, 1 / 3]], kind)
    assert sure == 1.0
    assert unsure == pytest.approx(1 / 3 if kind == "top" else 0.0, abs=1e-6)


def test_a_row_that_is_not_finite_is_unsure_and_spares_its_neighbours() -> None:
    for kind in KINDS:
        found = scores([[0.1, 0.8, 0.1], [np.nan, 0.5, 0.5], [0.1, np.inf, 0.0]], kind)
        assert found[1:].tolist() == [0.0, 0.0]
        assert found[0] == scores([[0.1, 0.8, 0.1]], kind)[0]
        lost = scores([[np.nan, 1.0, 0.0], [0.0, np.inf, 0.0], [-np.inf, 0.0, 0.0]], kind, logits=True)
        assert lost[:2].tolist() == [0.0, 0.0]
        assert 0.0 <= lost[2] < 1.0, "a class that is ruled out is a class like another"


def test_values_that_are_no_probabilities_are_told() -> None:
    assert scores([[0.0, 1.004, 0.0]]).tolist() == [1.0], "rounding of half precision"
    with pytest.raises(confidence.ScoreError, match=r"output 'y' gives a score of 3: it holds no probabilities"):
        scores([[3.0, 1.0, -2.0]])


def test_other_precisions() -> None:
    p = np.array([[0.25, 0.5, 0.25], [0.0, 0.0, 1.0]], np.float32)
    assert scores(p, dtype=np.float16, datatype="FP16").tolist() == [0.5, 1.0]
    assert scores(p, dtype=np.float64, datatype="FP64").dtype == np.float32
    assert scores((p.view(np.uint32) >> 16), dtype=np.uint16, datatype="BF16").tolist() == [0.5, 1.0]


def test_the_first_output_is_read_by_default() -> None:
    spec = spec_of()
    alone = msgspec.structs.replace(spec, outputs=spec.outputs[1:], confidence=ConfidenceSpec(kind="top"))
    assert confidence.scorer(alone)([np.array([[0.5, 0.25, 0.25]], np.float32)]).tolist() == [0.5]


# --- functions of a family's own ----------------------------------------------------------------------------------

OWN = """
import numpy as np

def tags(outputs):
    return outputs[0][:, 0] / 10

def pairs(outputs):
    return outputs[1][:, :2]

def nothing(outputs):
    return np.full(len(outputs[0]), np.nan)

def echo(outputs):
    return outputs[1][:, 0]

def words(outputs):
    return ["high"] * len(outputs[0])
"""


@pytest.fixture
def folder(tmp_path: Path) -> str:
    (tmp_path / "own.py").write_text(OWN)
    (tmp_path / "heavy.py").write_text("import torch\n\ndef score(outputs):\n    return outputs[0][:, 0]\n")
    return str(tmp_path)


def test_an_own_function_scores_a_batch(folder: str) -> None:
    batch = [np.array([[2], [5]], np.int32), np.zeros((2, 3), np.float32)]
    found = confidence.scorer(spec_of("own:tags", folder))(batch)
    np.testing.assert_array_equal(found, np.array([0.2, 0.5], np.float32))
    assert found.dtype == np.float32
    wide = spec_of("own:tags", folder, minimum=-5.0, maximum=5.0)
    assert confidence.scorer(wide)([batch[0] * -10, batch[1]]).tolist() == [-2.0, -5.0]


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("own:pairs", r"scores of shape \[2, 2\] for 2 rows"),
        ("own:nothing", "gave nan, declared are 0 to 1"),
        ("own:tags", "gave 9, declared are 0 to 1"),
        ("own:words", "could not convert"),
    ],
)
def test_an_own_function_never_gives_a_silent_score(folder: str, function: str, message: str) -> None:
    batch = [np.array([[2], [90]], np.int32), np.zeros((2, 3), np.float32)]
    with pytest.raises(confidence.ScoreError, match=message):
        confidence.scorer(spec_of(function, folder))(batch)


def test_a_nan_of_the_model_is_not_the_function_s_fault(folder: str) -> None:
    tags = np.zeros((2, 1), np.int32)
    batch = [tags, np.array([[0.5, 0, 0], [np.nan, 0, 0]], np.float32)]
    assert confidence.scorer(spec_of("own:echo", folder))(batch).tolist() == [0.5, 0.0]


def test_what_cannot_score_is_a_config_error(folder: str) -> None:
    with pytest.raises(ConfigError, match=r"has no \[confidence\]"):
        confidence.scorer(msgspec.structs.replace(spec_of(), confidence=None))
    with pytest.raises(ConfigError, match="no function tag "):
        confidence.scorer(spec_of("own:tag", folder))
    with pytest.raises(ConfigError, match="has no temperature"):
        confidence.scorer(spec_of("own:tags", folder), temperature=2.0)
    for wrong in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ConfigError, match="is not a temperature"):
            confidence.scorer(spec_of(), temperature=wrong)


def test_scoring_needs_no_torch_and_refuses_a_function_that_imports_it(folder: str) -> None:
    program = (
        "import sys\nfrom clover import confidence, families\nfrom clover.errors import ConfigError\n"
        "import msgspec\nfrom clover.types import ConfidenceSpec\n"
        "spec = families.load_family('fashion')\nconfidence.scorer(spec)\n"
        "assert 'torch' not in sys.modules\n"
        f"own = msgspec.structs.replace(spec, folder={folder!r}, confidence=ConfidenceSpec(kind='heavy:score'))\n"
        "try:\n    confidence.scorer(own)\nexcept ConfigError as error:\n    assert 'imports torch' in str(error)\n"
        "else:\n    sys.exit('not refused')\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
