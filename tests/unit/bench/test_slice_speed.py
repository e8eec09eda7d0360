"""`bench.slice_speed` on an artifact that the curve itself has drawn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("scipy", reason="bench.parvagpu, whose reader it uses, needs SciPy")

from bench import slice_speed

PLANE = [(slices, batch) for batch in (1, 2, 4, 8, 16, 32) for slices in (1, 2, 3, 4, 7)]


def test_the_numbers_that_drew_the_data_are_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "prof_data").mkdir()
    cells = np.array(PLANE, dtype=float)
    for name, gflop in slice_speed.GFLOP.items():
        speeds = slice_speed.curve(cells, gflop, 0.9, 2.0, 9.0)
        lines = [f"{n},{b},1,{100 * speed},1\n{n},{b},2,7,1\n" for (n, b), speed in zip(PLANE, speeds, strict=True)]
        (tmp_path / "prof_data" / f"{name}.csv").write_text("slices,batch,processes,rows,seconds\n" + "".join(lines))
    assert slice_speed.main([str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "without bert, inceptionv3, resnet50: FILLED 0.90, ROWS 2.0, heavy from 9.0 GFLOP" in said
    assert "any three left out: error 0% in the mean" in said
    (tmp_path / "prof_data" / "vgg16.csv").unlink()
    with pytest.raises(SystemExit):
        slice_speed.main([str(tmp_path)])
    assert "it lacks vgg16" in capsys.readouterr().err
