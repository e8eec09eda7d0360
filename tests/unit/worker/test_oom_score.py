"""Whom the kernel ends if memory runs out: a worker, not the server."""

from __future__ import annotations

from pathlib import Path

import pytest

from clover.worker import main


@pytest.mark.parametrize(
    ("before", "after"), [("0\n", "500"), ("-200\n", "300"), ("900\n", "1000"), ("1000\n", "1000")]
)
def test_a_worker_raises_its_score(tmp_path: Path, before: str, after: str) -> None:
    file = tmp_path / "oom_score_adj"
    file.write_text(before)
    main._volunteer(str(file))
    assert file.read_text().split()[0] == after


def test_where_it_cannot_it_starts_all_the_same(tmp_path: Path) -> None:
    main._volunteer(str(tmp_path / "missing"))
