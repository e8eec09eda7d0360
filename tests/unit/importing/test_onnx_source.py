"""Weights that lie beside an ONNX file: a link to them may not lead elsewhere."""

from __future__ import annotations

from pathlib import Path

import pytest

from clover.importing import onnx_source
from clover.importing.draft import DraftError
from tests.support.triton_models import affine

onnx = pytest.importorskip("onnx", reason="ONNX models need the extra onnx")
pytest.importorskip("onnxruntime", reason="ONNX models need the extra onnx")


def with_weights_beside(folder: Path) -> Path:
    """Write an ONNX file whose weights lie in `weights`."""
    folder.mkdir()
    model = onnx.load_from_string(affine())
    file = folder / "model.onnx"
    onnx.save_model(model, str(file), save_as_external_data=True, location="weights", size_threshold=0)
    return file


def test_weights_that_are_a_link_out_of_the_folder_are_refused(tmp_path: Path) -> None:
    file = with_weights_beside(tmp_path / "model")
    secret = tmp_path / "id_rsa"
    (file.parent / "weights").rename(secret)
    (file.parent / "weights").symlink_to(secret)
    with pytest.raises(DraftError, match=rf"weights is {secret}, outside of {file.parent}"):
        onnx_source.draft_of("m", [str(file)])


def test_a_cache_whose_files_are_all_links_into_one_store_is_taken(tmp_path: Path) -> None:
    file = with_weights_beside(tmp_path / "blobs")
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    for name in ("model.onnx", "weights"):
        (snapshot / name).symlink_to(file.parent / name)
    copies = onnx_source.copies_of(snapshot / "model.onnx", "model")
    assert copies == {
        "weights/model/model.onnx": snapshot / "model.onnx",
        "weights/model/weights": snapshot / "weights",
    }
