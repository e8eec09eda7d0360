"""`clover cluster`: what is printed, and exit codes, without Ray or servers."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from clover.__main__ import main as dispatch
from clover.cluster.cli import command
from clover.cluster.cli.command import main
from clover.cluster.cli.showing import show_plan, show_status
from clover.cluster.cluster_file import parse
from clover.cluster.controller.records import (
    ChangeStep,
    ClusterFamilyStatus,
    ClusterLook,
    ClusterNodeStatus,
    ClusterRegionStatus,
    ClusterStatus,
    ClusterTotals,
)
from clover.cluster.nodes.ray_support import use_token
from clover.cluster.planning.records import ClusterPlan, NodeTarget, RegionFlow
from clover.errors import ClusterError

TEXT = """
[cluster]
name = "demo"
folder = "{folder}"
[[region]]
name = "north"
carbon = {{ source = "static:100" }}
[[region]]
name = "south"
carbon = {{ source = "static:400" }}
[[node]]
name = "north-1"
region = "north"
[[node]]
name = "south-1"
region = "south"
port = 8082
[[family]]
family = "toy"
accuracy_floor = 90
slo_ms = 50
"""
FLOWS = (
    RegionFlow(family="toy", origin="south", region="north", rate=30.0),
    RegionFlow(family="toy", origin="north", region="north", rate=10.0),
)
TARGETS = (
    NodeTarget(node="north-1", awake=True, rates={"toy": 40.0}, accuracy={"toy": 91.5}),
    NodeTarget(node="south-1", awake=False),
)
STATUS = ClusterStatus(
    at_s=7200.0,
    epoch=4,
    controlling=True,
    reason="1 of 2 nodes awake",
    regions=(
        ClusterRegionStatus(
            name="north", intensity=100.4, method="configured", awake=1, nodes=1, devices=2, sent=10.0, answered=40.0
        ),
        ClusterRegionStatus(name="south", intensity=None, nodes=1, sent=30.0),
    ),
    nodes=(
        ClusterNodeStatus(
            name="north-1",
            region="north",
            phase="ready",
            devices={"a100-sxm4-40gb-emulated": 2},
            rates={"toy": 40.0},
            target=TARGETS[0],
            share=1.0,
            p95_ms={"toy": 12.34},
        ),
        ClusterNodeStatus(name="south-1", region="south", phase="released", devices={}, hold="released"),
    ),
    families=(
        ClusterFamilyStatus(
            family="toy",
            rate=40.0,
            accuracy=91.23,
            accuracy_floor=90.0,
            corrected=90.0,
            p95_ms=12.0,
            slo_p95_ms=50.0,
            rows=1000.0,
            reported_g=1.5,
            reported_j=100.0,
        ),
    ),
    flows=FLOWS,
    weights={"north": {"north-1": 1.0}},
    totals=ClusterTotals(since_s=0.0, planned_g=5.0, alone_g=10.0, awake_g=20.0, planned_s=7200.0),
    grams_h=2.0,
    alone_g_h=8.0,
    awake_g_h=10.0,
    troubles=("the state cannot be saved: the disk is full, which is said at such length that it has to be wrapped",),
)
PLAN = ClusterPlan(
    at_s=0.0, targets=TARGETS, flows=FLOWS, grams_h=2.0, bound_g_h=1.9, alone_g_h=8.0, awake_g_h=10.0, reason="because",
    unserved={"toy": 3.0},
)  # fmt: skip
LOOK = ClusterLook(
    at_s=0.0,
    epoch=4,
    trigger="dry run",
    plan=PLAN,
    steps=(ChangeStep(kind="drain", node="south-1", why="plans do without it"),),
    dry=True,
)


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "cluster.toml"
    path.write_text(TEXT.format(folder=tmp_path / "c"))
    return str(path)


class FakeHandle:
    """A controller that only keeps books."""

    held: list[tuple[str, str]] = []  # one for the test that looks

    @classmethod
    def attach(cls, file: Any) -> FakeHandle:
        return cls()

    def status(self) -> ClusterStatus:
        return STATUS

    def plan(self) -> ClusterLook:
        return LOOK

    def hold(self, node: str, hold: str) -> None:
        if node == "east-1":
            raise ClusterError("there is no node 'east-1'")
        self.held.append((node, hold))


@pytest.fixture
def answering(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeHandle.held = []
    monkeypatch.setattr(command, "ClusterHandle", FakeHandle)
    monkeypatch.setenv("COLUMNS", "80")


@pytest.mark.parametrize("width", [80, 120])
def test_tables_fit_and_say_what_matters(width: int) -> None:
    file = parse(TEXT.format(folder="/c"))
    for text in (show_status(STATUS, file, width), show_plan(LOOK, file, width)):
        assert max(map(len, text.splitlines())) <= width
    shown = " ".join(show_status(STATUS, file, width).split())
    for words in (
        "demo: 1 of 2 nodes awake, epoch 4",
        "2 g/h by the plan (modelled), 75 % less than 8 of each region alone, 80 % less than 10 with all nodes awake",
        "5 g in 2 h, 50 % less than 10 of each region alone",
        "held: released",
        "91.23",
        "toy: south -> north 30",
        "! the state cannot be saved",
    ):
        assert words in shown
    shown = " ".join(show_plan(LOOK, file, width).split())
    for words in ("plan of demo: because", "at most 5.3 % above the least", "! toy: 3 rows/s cannot be served",
                  "drain south-1: plans do without it", "91.50"):  # fmt: skip
        assert words in shown
    empty = ClusterLook(at_s=0.0, epoch=0, trigger="", plan=None, steps=())
    assert "no plan can be made yet: no node has reported" in show_plan(empty, file, width)
    why = "no plan can be made: the intensity of a region is not known yet"
    blind = msgspec.structs.replace(empty, troubles=(why,))
    assert "no node has reported" not in show_plan(blind, file, width)
    assert f"! {why}" in show_plan(blind, file, width)
    stopped = msgspec.structs.replace(LOOK, stopped="another controller is in charge")
    assert show_plan(stopped, file, width) == "nothing would be done: another controller is in charge"


def test_large_figures_are_written_out_and_what_is_not_saved_is_said() -> None:
    file = parse(TEXT.format(folder="/c"))
    regions = tuple(msgspec.structs.replace(own, sent=23456.7) for own in STATUS.regions)
    large = msgspec.structs.replace(STATUS, regions=regions, grams_h=43210.0, alone_g_h=40000.0, awake_g_h=43211.0)
    shown = " ".join(show_status(large, file, 120).split())
    for words in (
        "43210 g/h by the plan (modelled), 8 % more than 40000 of each region",
        "0 % less than 43211",
        "23457",
    ):
        assert words in shown


def test_status_and_plan(answering: None, file: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", file]) == 0
    assert "north-1" in capsys.readouterr().out
    assert main(["status", file, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["epoch"] == 4
    assert main(["plan", file]) == 0
    assert "steps now:" in capsys.readouterr().out
    assert main(["plan", file, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["plan"]["grams_h"] == 2.0


@pytest.mark.parametrize("change", [{"stopped": "another controller is in charge"}, {"plan": None}])
def test_a_controller_that_would_do_nothing_is_no_success(
    answering: None, file: str, change: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FakeHandle, "plan", lambda self: msgspec.structs.replace(LOOK, **change))
    assert main(["plan", file]) == 1


def test_nodes_are_held_and_left_to_plans_again(answering: None, file: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["drain", file, "north-1"]) == 0
    assert "--off` ends that" in capsys.readouterr().out
    assert main(["release", file, "north-1"]) == 0
    assert main(["release", file, "north-1", "--off"]) == 0
    assert FakeHandle.held == [("north-1", "drained"), ("north-1", "released"), ("north-1", "")]
    assert main(["drain", file, "east-1"]) == 3
    assert "there is no node" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "code", "why"),
    [
        (["status", "none.toml"], 2, "cannot read"),
        (["up", "{file}", "--wait", "nan"], 2, "--wait takes"),
        (["stat", "{file}"], 2, "did you mean status"),
        (["status", "{file}", "--jsn"], 2, "did you mean --json"),
        (["drain", "{file}"], 2, "NODE"),
        ([], 2, "VERB"),
    ],
)
def test_what_cannot_be_read(
    words: list[str], code: int, why: str, file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([word.format(file=file) for word in words]) == code
    assert why in capsys.readouterr().err


def test_without_ray_every_verb_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.setenv("RAY_AUTH_MODE", "token")  # so that nothing is set here
    for words in (["up", file], ["status", file], ["plan", file], ["drain", file, "north-1"]):
        assert main(words) == 3
        assert 'pip install "clover-inference[ray]"' in capsys.readouterr().err
    assert main(["down", file]) == 0  # which ends what runs here by its records
    assert "nothing of the cluster runs on this machine" in capsys.readouterr().err


def test_a_folder_that_cannot_be_made_is_an_error_that_names_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("clover.cluster.running.require_ray", lambda: None)
    (tmp_path / "f").write_text("")
    path = tmp_path / "cluster.toml"
    path.write_text(TEXT.format(folder=tmp_path / "f" / "c"))
    assert main(["status", str(path)]) == 3
    assert f"{tmp_path}/f" in capsys.readouterr().err


def test_a_folder_too_long_for_sockets_is_refused_before_anything_is_started(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("clover.cluster.running.require_ray", lambda: None)
    path = tmp_path / "cluster.toml"
    path.write_text(TEXT.format(folder=tmp_path / ("x" * 100)))
    assert main(["up", str(path)]) == 3
    assert "set cluster.folder to a shorter one" in capsys.readouterr().err
    assert [item.name for item in tmp_path.iterdir()] == ["cluster.toml"]


@pytest.mark.parametrize("words", [["--help"], ["up", "--help"], ["drain", "--help"], ["simulate", "--help"]])
def test_help_fits_80_columns(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main(words) == 0
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 80


def test_the_own_ray_has_a_token_that_only_its_user_can_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.setenv(name, "")  # restored afterwards
        monkeypatch.delenv(name)
    use_token(tmp_path)
    assert "RAY_AUTH_MODE" not in os.environ  # there is none
    use_token(tmp_path, make=True)
    path = tmp_path / "ray" / "token"
    assert (os.environ["RAY_AUTH_MODE"], os.environ["RAY_AUTH_TOKEN_PATH"]) == ("token", str(path))
    assert (path.stat().st_mode & 0o777, len(path.read_text())) == (0o600, 64)


def test_a_cluster_is_planned_for_with_one_thread_of_blas(monkeypatch: pytest.MonkeyPatch) -> None:
    """Set before NumPy is imported, and left as it is if somebody chose otherwise."""
    seen = list[tuple[str, ...]]()
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")

    def imported(module: str) -> SimpleNamespace:
        seen.append(tuple(os.environ.get(name, "") for name in names))
        return SimpleNamespace(main=lambda words: 0)

    for name in names:
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setenv("MKL_NUM_THREADS", "3")
    monkeypatch.setattr("clover.__main__.importlib.import_module", imported)
    assert dispatch(["carbon"]) == dispatch(["cluster", "simulate"]) == 0
    assert seen == [("", "", "3"), ("1", "1", "3")]
