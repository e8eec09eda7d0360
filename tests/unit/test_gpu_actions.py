"""What the GPU tests do on a GPU, done without one: an action that is broken is not found on the day a GPU is lent."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from clover import families
from clover.backends import parity
from clover.backends.artifacts import CompileOrder
from clover.backends.targets import Target
from tests.gpu import first, on_gpu
from tests.support import played_cuda

ROOT = Path(__file__).parents[2]
NAME = "NVIDIA A100-SXM4-40GB"


def run(words: list[str], asked: str = "") -> str:
    environment = os.environ | {played_cuda.VARIABLE: NAME, "CLOVER_NVML_LATENCY": "0"}
    command = [sys.executable, "-m", *words]
    done = subprocess.run(command, input=asked, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=300)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
def test_every_action_works_on_a_played_gpu(tmp_path: Path) -> None:
    fashion = families.load_family("fashion")
    tiny = msgspec.structs.replace(fashion, variants=(fashion.variant("tiny"),), max_batch=4, digest="")
    spec = families.load_family(tiny)
    target = Target(gpu=NAME, profile="gpu", driver="580", visible="GPU-a")
    order = CompileOrder(family=spec, variant="tiny", backend="eager", folder="", threads=1, target=target)
    given = msgspec.to_builtins(order)
    np.savez(tmp_path / "in.npz", x=parity.rows_of(spec, spec.variant("tiny"))[0])
    files = {"inputs": str(tmp_path / "in.npz"), "out": str(tmp_path / "out.npz")}
    asked: dict[str, dict[str, Any]] = {
        "facts": {},
        "answers": {"order": given, "visible": "GPU-a", "sizes": [1, 2], **files},
        "burn": {"seconds": 0.01, "size": 8, "duty": 0.5},
        "copies": {"mib": 1},
        "fill": {"leave": 39 << 30, "seconds": 0.0},
        "pinned": {},
        "context": {"seconds": 0.0},
        "hot_path": {"order": given, "backends": ["eager", "eager-fp16"], "sizes": [1, 4], "rounds": 2},
        "overlapped": {"order": given, "sizes": [1, 4], "rounds": 3},
    }
    assert {*asked, "signatures"} == set(on_gpu.ACTIONS), "signatures is the installed torch-tensorrt's"
    words = ["clover", "mig", "emulate", "a100-40gb:1", "--state", str(tmp_path / "box"), "--", sys.executable, "-m"]
    said = run(
        [*words, "tests.support.played_cuda"],
        json.dumps([["tests.gpu.on_gpu", do, more] for do, more in asked.items()]),
    )
    found = dict(zip(asked, json.loads(said.splitlines()[-1]), strict=True))
    assert found["facts"]["gpus"][0]["name"] == NAME
    assert found["facts"]["gpus"][0]["mig"] is True
    assert (found["answers"]["recorded"], found["answers"]["replay_fault"]) == ([1, 2, 3, 4], "")
    pinned = found["pinned"]
    assert (pinned["registered"], pinned["refused"], len(pinned["again"])) == (pinned["size"], [], 1)
    assert pinned["works"]
    assert found["hot_path"].keys() >= {f"eager-fp16, {how}, 4 rows" for how in ("replayed", "launched", "bare graph")}
    assert (found["overlapped"]["wrong, 1 rows"], found["overlapped"]["wrong, 4 rows"]) == (0, 0)
    assert found["fill"]["held"] == 0


@pytest.mark.slow
def test_the_first_minutes_run_on_an_emulated_board_and_go_on_where_they_ended(tmp_path: Path) -> None:
    words = ["tests.gpu.first", "--device", "emulated:l4", "--folder", str(tmp_path)]
    assert "| facts |" in run([*words, "facts"])
    shown = run([*words, "facts", "serving", "mig"])
    lines = first.read(tmp_path)
    ends = [(line["block"], line["ended"]) for line in lines if "ended" in line]
    assert ends == [(name, "done") for name in ("facts", "facts", "serving", "mig")]
    seen = {key: value for line in lines for key, value in line.items()}
    assert (seen["failed"], seen["failed_by_kill"]) == (0, 0)
    assert seen["swaps"] == 2
    assert "| no request fails by swaps | docs/architecture.md | 0 | emulated |" in shown


def test_the_table_says_what_is_confirmed_broken_and_not_seen(tmp_path: Path) -> None:
    (tmp_path / "figures.jsonl").write_text(
        '{"block": "facts", "tick_ms": 101.0}\n{"block": "energy", "context_w": 2.0}\n{"block": "energy", "cou'
    )
    shown = first.table(first.read(tmp_path))
    assert "arXiv 2312.02741 | 101 | confirmed |" in shown
    assert "owners' meters | 2 | BROKEN |" in shown
    assert "| counter and power agree within 5 % | tests/gpu |  | not seen |" in shown
