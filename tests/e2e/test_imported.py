"""Models of a Triton repository, imported, served and answered by one server."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import clover
from clover.__main__ import main as command
from clover.config import ServerConfig
from clover.config_families import FamilyConfig
from tests.support.servers import run
from tests.support.triton_models import WEIGHT, write_repository

pytest.importorskip("onnxruntime", reason="importing ONNX models needs the extra onnx")
pytest.importorskip("onnx", reason="importing ONNX models needs the extra onnx")

VARIANTS = {"affine": "onnx", "scripted": "torchscript", "shout": "python"}


@pytest.mark.usefixtures("forked_zygotes")
def test_imported_models_are_served(tmp_path: Path) -> None:
    assert command(["family", "import", str(write_repository(tmp_path / "triton")), "--into", str(tmp_path)]) == 1
    served = tuple(FamilyConfig(family=str(tmp_path / name), variant=variant) for name, variant in VARIANTS.items())

    async def main() -> None:
        server = clover.Server(
            config=ServerConfig(families=served),
            http=False,
            port=0,
            carbon="static:300",
            energy_meter="modelled",
            cache_dir=str(tmp_path / "cache"),
        )
        async with server:
            rows = np.arange(15, dtype=np.float32).reshape(5, 3)
            answer = await server.ainfer({"x": rows}, model="affine")
            np.testing.assert_allclose(answer["y"], rows @ WEIGHT)
            answer = await server.ainfer({"left": rows[:, :1], "right": rows[:, 1:2]}, model="scripted")
            np.testing.assert_allclose(answer["OUTPUT__0"], rows[:, :1] - 2 * rows[:, 1:2])
            answer = await server.ainfer({"text": [["ab"], ["c"]]}, model="shout")
            assert (answer["loud"].tolist(), answer["long"].tolist()) == ([[b"AB!"], [b"C!"]], [[2], [1]])

    run(main())
