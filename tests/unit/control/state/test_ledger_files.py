"""A budget over a restart: what is taken up, what is left, and that nothing waits for the disk."""

from __future__ import annotations

import logging
import math
import os
import shutil
from pathlib import Path
from typing import Any

import msgspec
import pytest

from clover.config import LedgerConfig, ListenConfig, ServerConfig
from clover.control.state.ledger_files import SAVE_S, LedgerFiles, budgets_folder
from tests.support.budget_fixture import HOUR, on_a_loop, served
from tests.support.control_fixture import Rig

SETTINGS = {"accuracy_floor": 89.0, "accuracy_budget": 1.0}


def started(folder: Path, at_h: float = 1000.0, **family: object) -> Rig:
    """A server's controller, started at this hour of grid time."""
    made = Rig(policy="budget", family={**SETTINGS, **family})
    made.clock.now_s = at_h * HOUR
    made.controller.ledger_files = LedgerFiles(folder)
    made.controller.ledger_files.load(made.family, made.clock())
    return made


async def left_behind(folder: Path) -> Rig:
    made = started(folder)
    await made.deploy()
    await served(made, 3.0, 5000.0, 91.0)
    await made.controller.stop()
    return made


@on_a_loop
async def test_a_budget_survives_a_restart(tmp_path: Path) -> None:
    before = await left_behind(tmp_path)
    again = started(tmp_path, at_h=1004.0)
    ledger = again.family.ledger
    assert (ledger.rows, ledger.accuracy_rows) == (5000.0, pytest.approx(455_000.0))
    assert ledger.since_s == before.family.ledger.since_s
    assert len(ledger.rates) == len(before.family.ledger.rates)
    await again.deploy()
    await served(again, 1.0, 1000.0, 92.0)  # the router counts from nothing again
    assert ledger.rows == 6000.0
    assert ledger.accuracy_rows == pytest.approx(455_000.0 + 92_000.0)


@on_a_loop
async def test_a_policy_without_a_budget_has_none_that_continues(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    await left_behind(tmp_path)
    for spends in (False, True):
        again = Rig(policy="budget", family=SETTINGS)
        files = LedgerFiles(tmp_path)
        files.load(again.family, 1004.0 * HOUR, spends=spends)
        files.release()
        assert again.family.ledger.rows == 5000.0, "the policy may be another one later"
        assert ("the budget continues after 5000 rows" in caplog.text) == spends


@on_a_loop
async def test_a_horizon_that_ended_begins_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    await left_behind(tmp_path)
    again = started(tmp_path, at_h=1024.0)
    assert again.family.ledger.rows == 0.0
    assert "its horizon has ended" in caplog.text


@on_a_loop
async def test_a_family_that_is_unloaded_and_loaded_again_goes_on_where_it_was(tmp_path: Path) -> None:
    made = started(tmp_path / "here")
    await made.deploy()
    await served(made, 3.0, 5000.0, 91.0)
    await made.controller.release("toy")
    copy = shutil.copytree(tmp_path / "here", tmp_path / "copy")  # the server has the lock of its own
    assert started(copy, at_h=1004.0).family.ledger.rows == 5000.0
    await made.controller.adopt(made.family.spec, made.profile, made.fleet, made.settings)
    made.family = made.controller.context.families["toy"]
    await served(made, 0.1, 10.0, 91.0)
    assert made.family.ledger.rows == 5010.0, "the router counted on"


@on_a_loop
async def test_load_outlives_the_horizon(tmp_path: Path) -> None:
    before = (await left_behind(tmp_path)).family.ledger
    again = started(tmp_path, at_h=1024.0).family.ledger
    assert len(again.rates) == len(before.rates) > 0
    assert math.isnan(again.since_s)


@pytest.mark.parametrize(
    ("changed", "at_h", "why"),
    [
        ({"accuracy_budget": 0.5}, 1004.0, "the family, its accuracies or its budget have changed since"),
        ({}, 1001.0, "the clock of the carbon data was set back"),
    ],
)
@on_a_loop
async def test_what_belongs_to_something_else_is_not_taken_up(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, changed: dict[str, object], at_h: float, why: str
) -> None:
    caplog.set_level(logging.INFO)
    await left_behind(tmp_path)
    again = started(tmp_path, at_h=at_h, **changed)
    assert again.family.ledger.rows == 0.0
    assert why in caplog.text


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data[:-9],
        lambda data: b"",
        lambda data: data.replace(b'"rows":5000.0', b'"rows":-1.0'),
        lambda data: data.replace(b'"format":1', b'"format":9'),
        lambda data: msgspec.json.encode({"format": 1}),
    ],
)
@on_a_loop
async def test_a_damaged_file_is_left_with_a_line_in_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, change: object
) -> None:
    caplog.set_level(logging.INFO)
    made = await left_behind(tmp_path)
    path = made.controller.ledger_files.path(made.family)
    assert path is not None
    path.write_bytes(change(path.read_bytes()))  # type: ignore[operator]
    again = started(tmp_path, at_h=1004.0)
    assert again.family.ledger.rows == 0.0
    assert str(path) in caplog.text
    await again.deploy()


def budget_of(made: Rig) -> dict[str, Any]:
    found: dict[str, Any] = made.controller.state()["models"]["toy"]["budget"]
    return found


@on_a_loop
async def test_two_servers_do_not_share_a_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "here-8080"
    await left_behind(folder)
    first, second = started(folder, at_h=1004.0), started(folder, at_h=1004.0)
    assert (first.family.ledger.rows, second.family.ledger.rows) == (5000.0, 0.0)
    assert f"not kept over a restart in {folder}: another server (process {os.getpid()}) keeps it" in caplog.text
    assert "--ledger-name" in caplog.text
    await first.deploy()
    await second.deploy()
    await second.look()
    assert "another server" in budget_of(second)["unkept"]
    assert budget_of(first)["unkept"] == ""
    path = first.controller.ledger_files.path(first.family)
    assert path is not None
    before = path.read_bytes()
    await served(second, 1.0, 700.0, 90.0)
    await second.look(SAVE_S)
    await second.controller.stop()
    assert path.read_bytes() == before
    assert caplog.text.count("not kept over a restart") == 1, "once, and not with every look"
    await first.controller.stop()
    assert started(folder, at_h=1004.0).family.ledger.rows == 5000.0


@on_a_loop
async def test_a_file_is_kept_once_the_other_server_has_ended(tmp_path: Path) -> None:
    folder = tmp_path / "here-8080"
    first, second = started(folder), started(folder)
    await first.deploy()
    await second.deploy()
    await served(second, 1.0, 700.0, 90.0)
    assert "another server" in budget_of(second)["unkept"]
    await first.controller.stop()
    await second.look(SAVE_S)
    assert budget_of(second)["unkept"] == ""
    await second.controller.stop()
    assert started(folder, at_h=1002.0).family.ledger.rows == 700.0


@on_a_loop
async def test_the_file_of_another_family_is_named_in_one_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made = await left_behind(tmp_path)
    path = made.controller.ledger_files.path(made.family)
    assert path is not None
    path.write_bytes(path.read_bytes().replace(b'"family":"toy"', b'"family":"other"'))
    assert started(tmp_path, at_h=1004.0).family.ledger.rows == 0.0
    (warning,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert warning == (
        f"toy: what the budget spent before is not taken up from {path}: it belongs to another family or horizon"
    )


def test_files_are_those_of_a_server_as_its_ledger_is(tmp_path: Path) -> None:
    def folder(**listen: Any) -> Path:
        name = listen.pop("ledger", "")
        return budgets_folder(
            ServerConfig(cache_dir=str(tmp_path), listen=ListenConfig(**listen), ledger=LedgerConfig(name=name))
        )

    found = [folder(port=9000), folder(port=9001), folder(port=9000, ledger="mine"), folder(port=9001, ledger="mine")]
    assert [path.name for path in found] == ["127.0.0.1-9000", "127.0.0.1-9001", "mine", "mine"]
    assert {path.parent for path in found} == {tmp_path / "budgets"}


@on_a_loop
async def test_files_are_written_now_and_then_and_in_a_thread(tmp_path: Path) -> None:
    made = started(tmp_path)
    files = made.controller.ledger_files
    await made.deploy()
    await made.look()
    assert files._task is not None
    await files._task
    path = files.path(made.family)
    assert path is not None
    first = path.stat().st_mtime_ns
    assert path.stat().st_mode & 0o077 == 0
    assert [item.name for item in tmp_path.iterdir()] == [path.name]
    await made.look(1.0, looks=5)
    assert path.stat().st_mtime_ns == first
    await made.look(SAVE_S)
    await files._task
    assert path.stat().st_mtime_ns > first


@on_a_loop
async def test_a_folder_that_cannot_be_written_to_is_said_and_no_more(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "taken").write_text("a file")
    made = started(tmp_path / "taken")
    await made.deploy()
    await made.look()
    with caplog.at_level(logging.WARNING):
        await made.controller.stop()
    assert "cannot be written" in caplog.text


@on_a_loop
async def test_a_server_beside_another_reads_and_adds_its_rows_to_what_that_one_left(tmp_path: Path) -> None:
    old = started(tmp_path)
    await old.deploy()
    await served(old, 3.0, 5000.0, 91.0)
    await old.controller.ledger_files.settle()
    new = Rig(policy="budget", family=SETTINGS)
    new.clock.now_s = old.clock.now_s
    files = new.controller.ledger_files = LedgerFiles(tmp_path, beside=True)
    assert files.load(new.family, new.clock())
    found = new.family.ledger.rows
    assert 0.0 < found <= 5000.0, "as it was written last"
    await new.deploy()
    await served(new, 0.5, 100.0, 92.0)
    assert new.family.ledger.rows == found + 100.0
    await served(old, 0.5, 300.0, 91.0)  # over connections that were open
    (file,) = tmp_path.iterdir()
    await old.controller.stop()
    kept = file.read_bytes()
    await new.look(SAVE_S)
    assert file.read_bytes() == kept, "it is not this one's yet"
    files.take_over([new.family], new.clock())
    assert new.family.ledger.rows == 5400.0
    assert new.family.ledger.accuracy_rows == pytest.approx(5300 * 91.0 + 100 * 92.0)
    assert new.family.ledger.since_s == old.family.ledger.since_s
    await served(new, 0.5, 50.0, 92.0)
    await new.controller.stop()
    assert b'"rows":5450.0' in file.read_bytes()


@on_a_loop
async def test_a_server_beside_another_that_left_nothing_goes_on_with_its_own_rows(tmp_path: Path) -> None:
    new = Rig(policy="budget", family=SETTINGS)
    files = new.controller.ledger_files = LedgerFiles(tmp_path, beside=True)
    assert not files.load(new.family, new.clock())
    await new.deploy()
    await served(new, 0.5, 100.0, 92.0)
    files.take_over([new.family], new.clock())
    assert new.family.ledger.rows == 100.0
    await new.controller.stop()
    assert len(list(tmp_path.iterdir())) == 1
