"""Servers on emulated GPUs that are killed, hurt and robbed of a GPU in the middle of a reconfiguration."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.forks import Forks
from tests.support.mig_runs import run


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_server_killed_after_any_step_comes_back_to_a_legal_deployment(scenes: Forks, toy_cache: Path) -> None:
    code, said, errors = run(scenes, toy_cache, "kills", within_s=390)
    assert code == 0, errors
    first, said, last = said[:3], said[3:-3], said[-3:]
    for whole in (first, last):
        assert [line["event"] for line in whole] == ["ready", "done", "end"], errors
        assert whole[-1]["code"] == 0, errors
        assert not whole[-1]["left"], "processes outlive the server"
    steps = first[1]["steps"]
    assert steps >= 12
    assert len(first[1]["instances"]) == 5
    assert [line["event"] for line in said] == ["ready", "end"] * steps, errors
    for ready, killed in zip(said[::2], said[1::2], strict=True):
        assert killed["code"] == -9, (killed, errors)
        assert not killed["left"], "processes outlive the server"
        # How it started on what the one before left:
        assert ready["answered"]
        assert ready["legal"]
        assert ready["instances"] == ready["deployment"] == ["gpu0:7g.40gb@0", "gpu1:7g.40gb@0"], killed["after"]
    assert last[0]["answered"]
    assert last[0]["instances"] == last[0]["deployment"]


@pytest.mark.slow
@pytest.mark.timeout(200)
def test_every_fault_ends_in_the_target_the_last_good_deployment_or_a_named_quarantine(
    scenes: Forks, toy_cache: Path
) -> None:
    code, said, errors = run(scenes, toy_cache, "faults", within_s=190)
    assert code == 0, errors
    base, mixed = ["full@7g.40gb"] * 2, ["full@2g.10gb"] * 2 + ["half@3g.20gb"] * 3
    during = {line["fault"]: line for line in said if "fault" in line}
    for name, line in during.items():
        assert line["legal"], name
        if name == "GPU lost":
            assert line["instances"] == line["deployment"]
            assert all(place.startswith("gpu0:") for place in line["instances"])
            assert line["served_on"] > 0
            assert line["failed_since"] == 0
            continue
        quarantined = {item["placement"] for report in line["reports"].values() for item in report["quarantined"]}
        lost = any(report["lost"] for report in line["reports"].values())
        assert line["reached"] in (base, mixed) or quarantined or lost, line
        if not quarantined and not lost:
            assert line["instances"] == line["deployment"], line
    assert during["in use for two tries"]["reached"] == mixed
    for harmless in ("slow", "power stuck", "energy fails"):
        assert during[harmless]["reached"] == mixed, harmless
    assert during["no permission"]["reached"] == base
    assert "quarantined" in json.dumps(during["in use for ever"]["reports"])
    for line in said:
        if "after" in line:
            assert line["asked"] > 0
            assert line["failed"] == 0, line
            assert line["instances"] == line["deployment"] == ["gpu0:7g.40gb@0", "gpu1:7g.40gb@0"], line
