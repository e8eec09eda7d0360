"""`clover family import`: what is imported answers as the models do, and what is refused says why."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from clover import families
from clover.__main__ import main
from tests.support.triton_models import IMPORTED, REFUSED, WEIGHT, loaded, write_repository

pytest.importorskip("onnxruntime", reason="importing ONNX models needs the extra onnx")
pytest.importorskip("onnx", reason="importing ONNX models needs the extra onnx")


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_repository(tmp_path_factory.mktemp("triton"))


@pytest.fixture(scope="module")
def into(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("families")
    assert main(["family", "import", str(repository), "--into", str(place)]) == 1
    return place


def test_each_model_is_in_the_table_with_its_reason(
    repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["family", "import", str(repository), "--into", str(tmp_path / "new")]) == 1
    out = capsys.readouterr().out
    table = {line.split()[0]: line.split()[2] for line in out.splitlines()[1 : 1 + len(IMPORTED) + len(REFUSED)]}
    assert table == dict.fromkeys(IMPORTED, "imported") | dict.fromkeys(REFUSED, "refused")
    flat = " ".join(out.split())
    for name, reason in REFUSED.items():
        assert reason in flat, name
    assert max(map(len, out.split("\n\n")[0].splitlines())) <= 80
    assert "version 3 is imported, and not 1" in flat
    assert "--max-queue-delay-ms 0.5" in flat
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == sorted(IMPORTED)


def test_nothing_is_overwritten(into: Path, repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (into / "affine" / "family.toml").read_text()
    assert main(["family", "import", str(repository), "--into", str(into)]) == 3
    assert "is there already, and nothing is overwritten" in " ".join(capsys.readouterr().out.split())
    assert (into / "affine" / "family.toml").read_text() == before


def test_onnx_models_answer_with_their_labels_and_versions(into: Path) -> None:
    spec = families.load_family(str(into / "affine"))
    assert (spec.version, spec.max_batch, spec.outputs[0].labels) == ("3", 8, ("left", "right"))
    rows = np.arange(15, dtype=np.float32).reshape(5, 3)
    np.testing.assert_allclose(loaded(into / "affine")([rows])[0], rows @ WEIGHT)
    # Fixed to batches of one: row by row, for a client's batch of any size.
    np.testing.assert_allclose(loaded(into / "threshold")([rows])[0], rows @ WEIGHT)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_torchscript_takes_inputs_by_name_in_the_shape_that_it_has(into: Path) -> None:
    left, right = np.array([[1.0], [2.0]], np.float32), np.array([[3.0], [5.0]], np.float32)
    (found,) = loaded(into / "scripted")([left, right])
    np.testing.assert_allclose(found, left - 2 * right)
    assert found.shape == (2, 1)


def test_the_python_backend_is_called_with_the_batch(into: Path) -> None:
    loud, long = loaded(into / "shout")([np.array([[b"ab"], [b"c"]], dtype=object)])
    assert (loud.tolist(), long.tolist(), long.dtype) == ([[b"AB!"], [b"C!"]], [[2], [1]], np.int32)


def test_wrong_repositories_are_errors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for given, said in ((tmp_path / "none", "is no folder"), (tmp_path, "holds no folders")):
        assert main(["family", "import", str(given), "--into", str(tmp_path)]) == 3
        assert said in capsys.readouterr().err
    assert main(["family", "import", str(tmp_path), "--in", "x", "--axis", "0"]) in (2, 3)
