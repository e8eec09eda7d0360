"""What a start makes of roll-outs before it."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import pytest

from clover.config import FamilyConfig, LedgerConfig, ServerConfig
from clover.families import chosen, load_family
from clover.server.rollout_files import RolloutFiles
from clover.types import FamilySpec
from tests.support.family_folder import BASE, write


@pytest.fixture
def item(tmp_path: Path) -> FamilyConfig:
    write(tmp_path / "1")
    write(tmp_path / "2", f'version = "2"\n{BASE}')
    return FamilyConfig(family=str(tmp_path / "1"))


def files(tmp_path: Path) -> RolloutFiles:
    return RolloutFiles.from_config(ServerConfig(state_dir=str(tmp_path / "state")))


def version(tmp_path: Path, name: str = "2b") -> FamilySpec:
    return msgspec.structs.replace(load_family(str(tmp_path / "2")), version=name)


def test_a_promoted_version_serves_on(tmp_path: Path, item: FamilyConfig) -> None:
    files(tmp_path).record_promotion("echo", item.family, version(tmp_path))
    after = files(tmp_path)
    spec = after.serve(item)
    assert (spec.version, spec.folder) == ("2b", str(tmp_path / "2"))
    assert after.notes == {"echo": "version 2b serves, which was promoted"}


def test_with_some_variants_only_a_promoted_version_has_them_alone(tmp_path: Path) -> None:
    more = (
        BASE
        + '\n[[variants]]\nname = "more"\nloader = "model:load"\n'
        + 'accuracy = { value = 1, metric = "top1", source = "x" }\n'
    )
    write(tmp_path / "1", more)
    write(tmp_path / "2", f'version = "2"\n{more}')
    item = FamilyConfig(family=str(tmp_path / "1"), only=("more",))
    assert [variant.name for variant in files(tmp_path).serve(item).variants] == ["more"]
    promoted = chosen(load_family(str(tmp_path / "2")), item.only)
    files(tmp_path).record_promotion("echo", item.family, promoted)
    spec = files(tmp_path).serve(item)
    assert (spec.version, [variant.name for variant in spec.variants]) == ("2", ["more"])
    after = files(tmp_path)
    assert after.serve(msgspec.structs.replace(item, only=())).version == "1"
    assert "or the setting only, have changed" in after.notes["echo"]


def test_a_trial_is_over_and_the_stable_version_serves(tmp_path: Path, item: FamilyConfig) -> None:
    files(tmp_path).record_trial("echo", item.family, version(tmp_path))
    after = files(tmp_path)
    assert after.serve(item).version == "1"
    assert "while version 2b was tried: version 1 serves" in after.notes["echo"]
    again = files(tmp_path)
    assert again.serve(item).version == "1"
    assert again.notes == {}


def test_files_that_changed_another_configuration_and_a_folder_that_is_gone_are_not_served(
    tmp_path: Path, item: FamilyConfig
) -> None:
    files(tmp_path).record_promotion("echo", "another", version(tmp_path))
    after = files(tmp_path)
    assert after.serve(item).version == "1"
    assert "another family than before" in after.notes["echo"]
    files(tmp_path).record_promotion("echo", item.family, version(tmp_path))
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
    found.record_promotion("echo", item.family, version(tmp_path))
    next((tmp_path / "state").rglob("echo.json")).write_text("{")
    assert files(tmp_path).serve(item).version == "1"


def test_a_server_that_writes_nothing_remembers_nothing(tmp_path: Path, item: FamilyConfig) -> None:
    found = RolloutFiles.from_config(ServerConfig())
    found.record_promotion("echo", item.family, version(tmp_path))
    found.record_end("echo")
    assert found.serve(item).version == "1"
    kept = RolloutFiles.from_config(ServerConfig(ledger=LedgerConfig(keep="on"), state_dir=str(tmp_path / "state")))
    kept.record_promotion("echo", item.family, version(tmp_path))
    assert kept.serve(item).version == "2b"


def test_a_trial_that_ends_leaves_the_version_that_was_promoted_before(tmp_path: Path, item: FamilyConfig) -> None:
    found = files(tmp_path)
    found.record_promotion("echo", item.family, version(tmp_path))
    found.record_trial("echo", item.family, version(tmp_path, "3"))
    after = files(tmp_path)
    assert after.serve(item).version == "2b"
    assert "while version 3 was tried: version 2b serves" in after.notes["echo"]
    found.record_trial("echo", item.family, version(tmp_path, "4"))
    found.record_end("echo")
    after = files(tmp_path)
    assert after.serve(item).version == "2b"
    assert after.notes == {"echo": "version 2b serves, which was promoted"}
