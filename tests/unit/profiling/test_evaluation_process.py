"""A family's rows and metric from a process of their own: as they are here, and what becomes of a family that fails."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from clover import families
from clover.errors import ConfigError, ProfileError
from clover.families.array_codec import pack, unpack
from clover.profiling import rows
from clover.profiling.evaluation_process import EvaluationProcess
from clover.types import FamilySpec, SandboxOrder
from clover.worker import evaluator

FAMILY = Path(__file__).parents[2] / "families" / "simple"
DATA = """
import os
import time

import numpy as np


def load(folder, split):
    if split == "calibration":
        {calibration}
    rows = np.arange({count}, dtype=np.int32).reshape(-1, 16)
    return [rows, rows + 1], np.array(["low", "high"] * (len(rows) // 2))


def judge(outputs, labels):
    if not len(labels):
        raise ValueError("no rows")
    return (labels == "low") * outputs["OUTPUT0"].reshape(len(labels), -1)[:, 0]
"""

IN_PLACE = """
def judge(outputs, labels):
    outputs["OUTPUT0"] += 1
    labels[:] = 2
    return outputs["OUTPUT0"] * labels
"""


def family(folder: Path, calibration: str = "pass", count: int = 64) -> FamilySpec:
    declaration = (FAMILY / "family.toml").read_text()
    evaluation = '\n[evaluation]\nloader = "data:load"\nmetric = "data:judge"\n'
    (folder / "family.toml").write_text(declaration + evaluation)
    (folder / "model.py").write_text((FAMILY / "model.py").read_text())
    (folder / "data.py").write_text(DATA.format(calibration=calibration, count=count))
    return families.load_family(str(folder))


def test_rows_and_scores_are_those_of_the_family(tmp_path: Path) -> None:
    spec = family(tmp_path)
    here = rows.load(spec)
    with rows.apart(spec, SandboxOrder()) as process:
        assert process is not None
        there = rows.load(spec, process=process)
        assert there.count == here.count == 4
        for mine, its in zip(here.take(0, 4), there.take(0, 4), strict=True):
            np.testing.assert_array_equal(mine, its)
        outputs = {"OUTPUT0": np.ones((4, 16), np.int32), "OUTPUT1": np.zeros((4, 16), np.int32)}
        np.testing.assert_array_equal(here.judge(outputs, here.labels), there.judge(outputs, there.labels))
        with pytest.raises(ProfileError, match=r"metric 'data:judge': ValueError: no rows$"):
            there.judge(outputs, there.labels[:0])
        assert there.judge(outputs, there.labels).sum() == 2.0, "it goes on"
    with pytest.raises(ProfileError, match="its process"):
        there.judge(outputs, there.labels)
    with rows.apart(spec, None) as process:
        assert process is None


def test_a_metric_may_work_in_place(tmp_path: Path) -> None:
    spec = family(tmp_path)
    (tmp_path / "data.py").write_text(IN_PLACE)
    outputs = {"OUTPUT0": pack(np.array([0, 1, 2]))}
    asked = evaluator.EvaluationQuestion(outputs=outputs, labels=pack(np.array([0, 0, 0])))
    (scores,) = evaluator.answer(spec, asked).arrays
    np.testing.assert_array_equal(unpack(scores), [2, 4, 6])


@pytest.mark.parametrize(
    ("calibration", "why"),
    [
        ("raise KeyError('gone')", r"evaluation loader 'data:load': KeyError: 'gone'$"),
        ("open('/etc/shadow')", r"PermissionError.*workers\.sandbox_read"),
        ("os._exit(3)", r"its process ended \(exit status 3\)$"),
        ("raise SystemExit(2)", r"it called sys\.exit\(2\)$"),
        ("return [np.zeros((4, 3), np.int32)] * 2, np.zeros(4)", r"rows of shape \[3\] do not fit \[16\]$"),
        ("return [np.zeros(4)], np.zeros(4)", r"gave 1 arrays for 2 inputs$"),
    ],
)
def test_what_goes_wrong_is_said(tmp_path: Path, calibration: str, why: str) -> None:
    spec = family(tmp_path, calibration)
    with EvaluationProcess(spec, SandboxOrder()) as process, pytest.raises(ConfigError, match=why) as error:
        process.rows("calibration")
    assert str(error.value).count("evaluation loader") == 1


def test_a_loader_that_hangs_is_not_waited_for(tmp_path: Path) -> None:
    spec = family(tmp_path, "time.sleep(60)")
    with (
        EvaluationProcess(spec, SandboxOrder(), answer_s=0.05) as process,
        pytest.raises(ProfileError, match=r"took more than 0\.05 s"),
    ):
        process.rows("calibration")
