"""What a start makes of roll-outs before it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from clover.config import FamilyConfig, LedgerConfig, ServerConfig
from clover.families import load_family
from clover.server.rollout_files import PROMOTED, TRIAL, RolloutFiles, RolloutRecord
from tests.support.family_folder import BASE, write


@pytest.fixture
def item(tmp_path: Path) -> FamilyConfig:
    write(tmp_path / "1")
    write(tmp_path / "2", f'version = "2"\n{BASE}')
    return FamilyConfig(family=str(tmp_path / "1"))


def files(tmp_path: Path) -> RolloutFiles:
    return RolloutFiles.of(ServerConfig(state_dir=str(tmp_path / "state")))


def record(tmp_path: Path, phase: str, configured: str) -> RolloutRecord:
    spec = load_family(str(tmp_path / "2"))
    return RolloutRecord(phase=phase, configured=configured, folder=spec.folder, version="2b", digest=spec.digest)


def test_a_promoted_version_serves_on(tmp_path: Path, item: FamilyConfig) -> None:
    files(tmp_path).write("echo", record(tmp_path, PROMOTED, item.family))
    after = files(tmp_path)
    spec = after.serve(item)
    assert (spec.version, spec.folder) == ("2b", str(tmp_path / "2"))
    assert after.notes == {"echo": "version 2b serves, which was promoted"}


def test_a_trial_is_over_and_the_stable_version_serves(tmp_path: Path, item: FamilyConfig) -> None:
    files(tmp_path).write("echo", record(tmp_path, TRIAL, item.family))
    after = files(tmp_path)
    assert after.serve(item).version == "1"
    assert "while version 2b was tried: version 1 serves" in after.notes["echo"]
    again = files(tmp_path)
    assert again.serve(item).version == "1"
    assert again.notes == {}


def test_files_that_changed_another_configuration_and_a_folder_that_is_gone_are_not_served(
    tmp_path: Path, item: FamilyConfig
) -> None:
    files(tmp_path).write("echo", record(tmp_path, PROMOTED, "another"))
    after = files(tmp_path)
    assert after.serve(item).version == "1"
    assert "names another family" in after.notes["echo"]
    files(tmp_path).write("echo", record(tmp_path, PROMOTED, item.family))
    (tmp_path / "2" / "model.py").write_text("changed = 1\n")
    after = files(tmp_path)
    assert after.serve(item).version == "1"
    assert "have changed" in after.notes["echo"]
    os.rename(tmp_path / "2", tmp_path / "gone")
    after = files(tmp_path)
    assert after.serve(item).version == "1"
    assert "cannot be served" in after.notes["echo"]


def test_a_damaged_file_is_passed_over(tmp_path: Path, item: FamilyConfig) -> None:
    found = files(tmp_path)
    found.write("echo", record(tmp_path, PROMOTED, item.family))
    next((tmp_path / "state").rglob("echo.json")).write_text("{")
    assert files(tmp_path).serve(item).version == "1"


def test_a_server_that_writes_nothing_remembers_nothing(tmp_path: Path, item: FamilyConfig) -> None:
    found = RolloutFiles.of(ServerConfig())
    found.write("echo", record(tmp_path, PROMOTED, item.family))
    found.remove("echo")
    assert found.serve(item).version == "1"
    assert RolloutFiles.of(ServerConfig(ledger=LedgerConfig(keep="on"), state_dir=str(tmp_path))).promoted("x") is None
