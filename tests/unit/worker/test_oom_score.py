"""Whom the kernel ends if memory runs out: a worker, not the zygote or the server."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from clover.worker import oom_score


@pytest.mark.parametrize(("zygote", "worker"), [("0", "500"), ("-200", "300"), ("900", "1000"), ("1000", "1000")])
def test_a_worker_raises_its_score_once(tmp_path: Path, zygote: str, worker: str) -> None:
    for name in ("self", str(os.getppid())):
        (tmp_path / name).mkdir()
        (tmp_path / name / "oom_score_adj").write_text(f"{zygote}\n")
    for _ in range(2):
        oom_score.volunteer(str(tmp_path))
        assert (tmp_path / "self" / "oom_score_adj").read_text() == worker


def test_if_it_cannot_it_starts_all_the_same(tmp_path: Path) -> None:
    oom_score.volunteer(str(tmp_path))
