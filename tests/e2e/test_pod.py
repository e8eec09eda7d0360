"""A server without privileges, on MIG instances that somebody else made: it serves, swaps and changes none of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from clover.backends import child_environment

ROOT = Path(__file__).parents[2]


def run(*words: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, **child_environment()},
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.timeout(200)
def test_a_pod_serves_and_swaps_on_the_instances_that_it_was_given(toy_cache: Path) -> None:
    said = [json.loads(line) for line in run("tests.support.pod_server", str(toy_cache)).splitlines()]
    ready, *swaps, done = said
    both = ["gpu0:1g.10gb@0", "gpu0:1g.10gb@1"]
    assert ready["answered"]
    assert ready["fixed"] == "fixed: not permitted to change instances"
    assert [swap["reached"] for swap in swaps] == [
        ["half@1g.10gb", "half@1g.10gb"],
        ["full@1g.10gb", "half@1g.10gb"],
        ["full@1g.10gb", "full@1g.10gb"],
    ]
    for line in (ready, *swaps):
        assert line["instances"] == line["deployment"] == both
    assert done["asked"] > 0
    assert (done["failed"], done["reasons"]) == (0, [])
    assert done["same"], "the instances are those that it was given"
    # The counter is the whole board's: five of its seven slices are not this server's, nor is their idle energy.
    lines = done["lines"]
    assert lines["method"] == "emulated"
    rest_j = sum(lines[name] for name in ("idle_j", "awake_j", "unowned_j", "foreign_j"))
    assert lines["foreign_j"] == pytest.approx(rest_j * 5 / 7)
    # They outlive the server, and whoever lists them is told how they stand.
    box = toy_cache / "emulated" / "pod-1g.10gb-2.nvml"
    words = ["--box", str(box), "--cache-dir", str(toy_cache)]
    text = run("clover", "mig", "list", *words)
    assert "fixed: not permitted to change instances; these are served on as they are" in text
    assert all(uuid in text for uuid in ready["uuids"])
