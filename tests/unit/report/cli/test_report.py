"""`python -m clover report`: what it prints and writes, and its exit codes."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import shutil
import sqlite3
from collections.abc import Mapping
from pathlib import Path

import pytest

from clover.report.cli import main
from clover.telemetry.ledger import LedgerWriter
from tests.support.ledgers import LedgerScene, write_ledger
from tests.support.reports import SCENE, ledger_file, made_report

NOW = SCENE.end_s + 86_400.0
CONFIGURED = """
[report]
application = "Shop"
organisation = "Example & Co"
market_g_per_kwh = 40
market_source = "contract 17"
"""


def run(*argv: str, environ: Mapping[str, str] | None = None) -> int:
    return main(argv, now=lambda: NOW, environ=environ or {})


@pytest.fixture
def ledger() -> str:
    return str(ledger_file()[0])


def test_the_table_is_the_default(ledger: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(ledger) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("Carbon report of this server (shop): 2026-09-22 00:00 UTC to 2026-09-24 00:00\nUTC")
    assert max(map(len, printed.splitlines())) <= 80
    assert "Electricity by hour" in printed  # a short period


def test_json_has_the_whole_report(ledger: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(ledger, "--format", "json", "--market-g", "50") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["operation"]["grams"] == pytest.approx(made_report().operation.grams)
    assert found["market_g"] == pytest.approx(made_report().market_g)
    assert len(found["inputs"]["entries_sha256"]) == 64


def test_the_configuration_says_who_reports(ledger: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "clover.toml"
    path.write_text(CONFIGURED)
    assert run(ledger, "--config", str(path), "--format", "json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["application"]["name"] == "Shop"
    assert found["market_g_per_kwh"] == 40
    assert run(ledger, "--format", "json", "--market-g", "7", environ={"CLOVER_CONFIG": str(path)}) == 0
    assert json.loads(capsys.readouterr().out)["market_g_per_kwh"] == 7


def test_the_ending_of_the_file_chooses_the_format(
    ledger: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, begin in (("a.csv", b"tenant,"), ("a.json", b"{"), ("a.html", b"<!doctype"), ("a.txt", b"Carbon report")):
        assert run(ledger, "--by", "tenant", "--out", str(tmp_path / name)) == 0
        assert (tmp_path / name).read_bytes().startswith(begin)
        captured = capsys.readouterr()
        assert captured.out == ""
        assert f"wrote {tmp_path / name} (" in captured.err


@pytest.mark.parametrize("by", ["hour", "day", "month", "model", "variant", "device", "tenant"])
def test_csv_of_every_kind_sums_to_the_total(ledger: str, by: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(ledger, "--format", "csv", "--by", by) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    whole = sum(float(row["location_based_gco2e"]) for row in rows)
    assert whole == pytest.approx(made_report().operation.grams, rel=1e-9)


def test_a_part_of_the_time(ledger: str, capsys: pytest.CaptureFixture[str]) -> None:
    def rows(*argv: str) -> int:
        assert run(ledger, "--format", "json", *argv) == 0
        return int(json.loads(capsys.readouterr().out)["rows"])

    first, second = rows("--to", "2026-09-23"), rows("--from", "2026-09-23")
    assert first + second == made_report().rows
    assert rows("--from", "2026-09", "--to", "2026-10") == made_report().rows  # more than there is: gaps say so
    # Days of Berlin begin at 22:00 UTC.
    berlin = ["--tz", "Europe/Berlin", "--from", "2026-09-23", "--to", "2026-09-24"]
    assert rows(*berlin) == rows("--from", "2026-09-22T22:00", "--to", "2026-09-23T22:00")


def test_a_period_ends_with_what_is_over(ledger: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(ledger, "--from", "2026-09-23", "--to", "2026-10", "--format", "json") == 0
    found = json.loads(capsys.readouterr().out)
    period, gaps = found["period"], found["gaps"]
    assert period["end"] == NOW - 60.0
    assert period["edges"] == "asked was until 2026-10-01 00:00 UTC, which is not over yet"
    assert max(gap["start"] + gap["seconds"] for gap in gaps) <= NOW
    assert run(ledger, "--from", "2026-09-22T01:20", "--to", "2026-10", "--format", "json") == 0
    edges = json.loads(capsys.readouterr().out)["period"]["edges"]
    assert "which is not over yet; asked was 2026-09-22 01:20 UTC" in edges
    assert run(ledger, "--from", "2026-09-23", "--to", "2026-09-24", "--format", "json") == 0
    assert json.loads(capsys.readouterr().out)["period"]["edges"] == ""


def test_without_an_end_it_says_that_the_newest_minutes_are_left_out(
    ledger: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def period(now: float) -> tuple[float, str]:
        assert main([ledger, "--format", "json"], now=lambda: now, environ={}) == 0
        found = json.loads(capsys.readouterr().out)["period"]
        return found["end"], found["edges"]

    assert period(NOW) == (SCENE.end_s, "")
    end, edges = period(SCENE.end_s)
    assert end == SCENE.end_s - 60.0
    assert edges.startswith("what is newer is left out")


def test_of_a_server_that_has_stopped_the_newest_minute_is_there(
    ledger: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stopped = shutil.copy(ledger, tmp_path / "stopped.db")
    with contextlib.closing(sqlite3.connect(stopped)) as file, file:
        file.execute("UPDATE runs SET ended = ?", (SCENE.end_s - 2.0,))
    assert main([str(stopped), "--format", "json"], now=lambda: SCENE.end_s, environ={}) == 0
    period = json.loads(capsys.readouterr().out)["period"]
    assert (period["end"], period["edges"]) == (SCENE.end_s, "")


def test_a_period_is_widened_to_hours_that_cannot_be_split(ledger: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(ledger, "--from", "2026-09-22T01:20", "--to", "2026-09-22T02:10", "--format", "json") == 0
    period = json.loads(capsys.readouterr().out)["period"]
    assert (period["start"] - SCENE.start_s, period["end"] - SCENE.start_s) == (3600.0, 3 * 3600.0)
    assert period["edges"].startswith(
        "asked was 2026-09-22 01:20 UTC to 2026-09-22 02:10 UTC, which the ledger has only"
    )


def test_days_of_a_zone_sum_to_the_total(ledger: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(ledger, "--format", "csv", "--by", "day", "--tz", "America/New_York") == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row["day"] for row in rows] == ["2026-09-21", "2026-09-22", "2026-09-23"]
    assert sum(float(row["location_based_gco2e"]) for row in rows) == pytest.approx(made_report().operation.grams)


def test_emulated_energy_is_called_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_ledger(tmp_path / "emulated.db", LedgerScene(days=0.25, minutes_days=0.0, gpu_label="emulated"))
    assert run(str(tmp_path / "emulated.db")) == 0
    assert "EMULATED hardware drew no power" in " ".join(capsys.readouterr().out.split())


def test_a_report_is_verified_by_its_ledger(ledger: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, state = tmp_path / "report.json", tmp_path / "state"
    assert run(ledger, "--out", str(out)) == 0
    assert run("--verify", str(out), ledger) == 0
    assert "holds  that the ledger gives the same report" in capsys.readouterr().out
    assert run("--verify", str(out), "--state-dir", str(state)) == 3
    assert f"there is no ledger in {state}" in capsys.readouterr().err
    (state / "ledger").mkdir(parents=True)
    shutil.copy(ledger, state / "ledger" / "shop.db")
    assert run("--verify", str(out), "--state-dir", str(state)) == 0
    out.write_text(out.read_text().replace('"rows": ', '"rows": 1', 1))
    assert run("--verify", str(out), ledger) == 1
    assert "FAULT  the ledger has the entries that the report names" in capsys.readouterr().out
    assert run("--verify", str(out), str(tmp_path / "missing.db")) == 3
    assert f"{tmp_path / 'missing.db'}: " in capsys.readouterr().err


def test_the_ledger_of_the_state_folder_is_the_default(
    ledger: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert run() == 3
    assert f"there is no ledger in {tmp_path / 'clover'}" in capsys.readouterr().err
    folder = tmp_path / "clover" / "ledger"
    folder.mkdir(parents=True)
    shutil.copy(ledger, folder / "one.db")
    assert run("--to", "2026-09-22T02:00") == 0
    assert run("--state-dir", str(tmp_path / "clover"), "--to", "2026-09-22T02:00") == 0
    shutil.copy(ledger, folder / "two.db")
    assert run() == 2
    assert "there are 2 ledgers, name one, or give --cluster for all:" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "code", "text"),
    [
        (["--from", "2027-01", "--to", "2027-02"], 3, "nothing from 2027-01-01 00:00 UTC to 2027-02-01 00:00 UTC: it"),
        (["--from", "2027-01-01"], 3, "has nothing from 2027-01-01"),
        (["--to", "2020"], 2, "'2020' is no time"),
        (["--to", "2020-01-01"], 2, "is not before --to 2020-01-01"),
        (["--from", "2026-09-23", "--to", "2026-09-23"], 2, "is not before"),
        (["--tz", "Moon"], 2, "there is no time zone 'Moon'"),
        (["--market-g", "-1"], 2, "--market-g is in gCO2e/kWh"),
        (["--market-g", "nan"], 2, "--market-g is in gCO2e/kWh"),
        (["--format", "parquet"], 2, "--format parquet is not for a terminal: give --out FILE"),
        (["--out", "/nowhere/x.csv"], 2, "/nowhere/x.csv: No such file or directory"),
        (["--config", "/nowhere.toml"], 2, "cannot read /nowhere.toml"),
        (["--by", "week"], 2, "there is no 'week'"),
        (["--formt", "csv"], 2, "did you mean --format?"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_said(
    ledger: str, argv: list[str], code: int, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(ledger, *argv) == code
    captured = capsys.readouterr()
    assert text in captured.err
    assert captured.out == ""


def test_files_that_are_no_ledger(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    empty, text, folder, new = (tmp_path / name for name in ("empty.db", "text.db", "folder.db", "new.db"))
    empty.touch()
    text.write_text("x" * 5000)
    folder.mkdir()
    LedgerWriter(new).close()
    for path in (tmp_path / "missing.db", empty, text, folder, new):
        assert run(str(path)) == 3, path
        captured = capsys.readouterr()
        assert captured.err.startswith(f"clover report: {path}: ")
        assert captured.out == ""


@pytest.mark.skipif(os.geteuid() == 0, reason="root can read every file")
def test_a_file_that_may_not_be_read(ledger: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = Path(shutil.copy(ledger, tmp_path / "shut.db"))
    path.chmod(0)
    assert run(str(path)) == 3
    assert "Permission denied" in capsys.readouterr().err


def test_what_is_no_report_is_not_verified(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "x.json"
    path.write_text("{}")
    assert run("--verify", str(path)) == 2
    assert "it is no report" in capsys.readouterr().err
    assert run("--verify", str(tmp_path / "missing")) == 2


def test_help_is_readable(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--help") == 0
    assert "exit codes: 0 done" in capsys.readouterr().out


def test_the_audit_lists_who_changed_the_server(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "shop.db"
    write_ledger(path, SCENE)
    assert run(str(path), "--audit") == 0
    assert capsys.readouterr().out == "no call changed the server in that time\n"
    with contextlib.closing(sqlite3.connect(path)) as file, file:
        for at, who in ((SCENE.start_s + 5, "token ops"), (SCENE.end_s + 5, "local")):
            detail = json.dumps({"who": who, "call": "pin"})
            row = (at, "control", "m", f"pin m by {who} (http): done", detail, 1)
            file.execute("INSERT INTO events (at, kind, model, summary, detail, run) VALUES (?, ?, ?, ?, ?, ?)", row)
    assert run(str(path), "--audit") == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first.endswith("  pin m by token ops (http): done")
    assert "local" in second
    assert run(str(path), "--audit", "--to", "2026-09-24", "--format", "json") == 0
    assert json.loads(capsys.readouterr().out) == [{"who": "token ops", "call": "pin"}]
    assert run(str(path), "--audit", "--format", "csv") == 2
    assert "table or json" in capsys.readouterr().err
