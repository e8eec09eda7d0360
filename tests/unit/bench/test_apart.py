"""What a bench says of other work on its machine."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from bench import apart


@pytest.mark.parametrize(
    ("cores", "weight", "said"),
    [(0.05, 0.0, "quiet"), (0.05, 20.0, "quiet"), (1.5, 0.0, "loaded"), (1.5, 20.0, "loaded, preferred 20 to 1")],
)
def test_a_run_beside_other_work_is_called_loaded(cores: float, weight: float, said: str) -> None:
    assert apart.label(cores, weight) == said


def test_only_what_others_used_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    busy, own, now = iter((100.0, 113.0)), iter((5.0, 8.0)), iter((0.0, 10.0))
    monkeypatch.setattr(apart, "busy_seconds", lambda: next(busy))
    monkeypatch.setattr(apart, "_own_seconds", lambda: next(own))
    monkeypatch.setattr(apart, "time", SimpleNamespace(monotonic=lambda: next(now)))
    report = apart.OtherWork().report()
    assert (report["cores used by other work"], report["run"]) == (1.0, "loaded")


class Kernel:
    """Makes the files of a control group as its folder is made."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, file: str) -> None:
        make, self.seen = Path.mkdir, ""

        def mkdir(path: Path) -> None:
            make(path)
            for name in (file, "cgroup.procs"):
                (path / name).touch()

        def rmdir(path: Path) -> None:
            self.seen = (path / file).read_text() + " " + (path / "cgroup.procs").read_text()

        monkeypatch.setattr(Path, "mkdir", mkdir)
        monkeypatch.setattr(Path, "rmdir", rmdir)


@pytest.mark.parametrize(("file", "below", "value"), [("cpu.shares", "cpu", "20480"), ("cpu.weight", "", "2000")])
def test_a_weight_makes_a_group_and_leaves_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, file: str, below: str, value: str
) -> None:
    over = tmp_path / below
    if below:
        over.mkdir()
    kernel = Kernel(monkeypatch, file)
    with pytest.raises(RuntimeError, match="the bench"), apart.preferred(20.0, tmp_path):
        raise RuntimeError("the bench failed")
    assert kernel.seen == f"{value} {os.getpid()}"
    assert (over / "cgroup.procs").read_text() == str(os.getpid())


def test_without_a_weight_nothing_is_made(tmp_path: Path) -> None:
    with apart.preferred(0.0, tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []
