"""A server without privileges, on MIG instances that somebody else made: it serves, swaps and changes none of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.forks import Forks
from tests.support.mig_runs import environment, run

COMMAND = "import sys\nfrom clover.__main__ import main\nsys.exit(main(sys.argv[1:]))"


@pytest.mark.slow
@pytest.mark.timeout(200)
def test_a_pod_serves_and_swaps_on_the_instances_that_it_was_given(scenes: Forks, toy_cache: Path) -> None:
    code, said, errors = run(scenes, toy_cache, module="tests.support.pod_server")
    assert code == 0, errors
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
    rest_j = sum(lines[name] for name in ("idle_j", "idle_no_request_j", "awake_j", "unowned_j", "foreign_j"))
    assert lines["foreign_j"] == pytest.approx(rest_j * 5 / 7)
    # They outlive the server, and whoever lists them is told how they stand.
    box = toy_cache / "emulated" / "pod-1g.10gb-2.nvml"
    words = ["--box", str(box), "--cache-dir", str(toy_cache)]
    listed = scenes.run(COMMAND, ["mig", "list", *words], environment())
    assert listed.returncode == 0, listed.stderr
    assert "fixed: not permitted to change instances; these are served on as they are" in listed.stdout
    assert all(uuid in listed.stdout for uuid in ready["uuids"])
