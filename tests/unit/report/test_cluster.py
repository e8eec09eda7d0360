"""The report of several servers: lines that sum exactly, nothing twice, and what it says of nodes without figures."""

from __future__ import annotations

import csv
import io
import json
import math
import sys
from collections import defaultdict
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from clover.errors import ConfigError, LedgerError
from clover.report.build import LedgerRows, ReportOptions, report_of
from clover.report.cli import main
from clover.report.cli.cluster import named_ledgers
from clover.report.cluster import CLUSTER_BY, ClusterOptions, NodeLedger, cluster_report_of, whole_parts
from clover.report.cluster_records import ClusterLine, ClusterReport
from clover.report.records import Report
from clover.telemetry.ledger.rows import GridRow, LineRow, RunRow, UsageRow
from tests.support.ledgers import LedgerScene, write_ledger

HOUR_S = 3600
ZONES = ("DE", "FR", "CAISO")
OPTIONS = ClusterOptions(start=0.0, end=4.0 * HOUR_S, made=5.0 * HOUR_S)


def node_report(name: str, zone: str, hours: Sequence[tuple[float, float, int]], started: float = 0.0) -> Report:
    """A report of a node: joules, intensity and rows of each hour."""
    usage, lines, grid = [], [], []
    for index, (joules, g_per_kwh, rows) in enumerate(hours):
        at, grams = index * HOUR_S, joules / 3.6e6 * g_per_kwh * 1.3
        own = UsageRow(
            at, HOUR_S, "fashion", "small", "cpu0", "1c@0", f"t{index % 2}", "modelled",
            rows, rows, 0, 0, 0, rows, joules / 3.0, 0.0, 0.0, 0.0, 0.0, grams / 3.0, 0.0, 0.0, 0.0,
        )  # fmt: skip
        usage.append(own)
        lines.append(LineRow(at, HOUR_S, "cpu0", "active", "modelled", joules / 3.0, grams / 3.0))
        lines.append(LineRow(at, HOUR_S, "cpu0", "unowned", "modelled", 2.0 * joules / 3.0, 2.0 * grams / 3.0))
        grid.append(
            GridRow(at, HOUR_S, zone, "neso", "average", "lifecycle", "live", 3600.0, g_per_kwh, 0.0, 0.0, joules,
                    grams / 1.3, grams)
        )  # fmt: skip
    run = RunRow(1, started, 1e6, None, "0.1.0", name, 7, "c0ffee", '{"carbon": {"pue": 1.3}}', '{"pue": 1.3}')
    found = LedgerRows(usage=usage, lines=lines, grid=grid, grid_minutes=grid, runs=[run])
    return report_of(found, ReportOptions(start=OPTIONS.start, end=OPTIONS.end, made=OPTIONS.made, server=name))


hours = st.lists(st.tuples(st.floats(0.0, 1e9), st.floats(1.0, 1200.0), st.integers(0, 10**7)), min_size=1, max_size=4)
nodes_of = st.lists(st.tuples(st.sampled_from(ZONES), hours), min_size=1, max_size=5)


def cluster(found: Sequence[tuple[str, Sequence[tuple[float, float, int]]]]) -> ClusterReport:
    nodes = [
        NodeLedger(f"n{index}", "", node_report(f"n{index}", zone, rows)) for index, (zone, rows) in enumerate(found)
    ]
    return cluster_report_of(nodes, OPTIONS)


def sums(lines: Sequence[ClusterLine]) -> tuple[int, ...]:
    names = ("rows", "joules_uj", "grams_ng")
    return tuple(sum(getattr(line, name) for line in lines) for name in names)


@given(nodes_of)
def test_lines_of_nodes_regions_and_breakdowns_sum_exactly(found: Any) -> None:
    made = cluster(found)
    total = sums([made.total])
    assert sums([item.line for item in made.nodes]) == total
    assert sums([item.line for item in made.regions]) == total
    for by in CLUSTER_BY:
        assert sums(made.breakdown(by).lines) == total, by
    by_region: dict[str, list[ClusterLine]] = defaultdict(list)
    for item in made.nodes:
        by_region[item.region].append(item.line)
    assert {item.line.name: sums([item.line]) for item in made.regions} == {
        name: sums(lines) for name, lines in by_region.items()
    }
    # And they are what the nodes' own reports say.
    assert made.total.grams_ng / 1e9 == pytest.approx(sum(item.operation.grams for item in made.reports), abs=1e-8)
    assert made.total.joules_uj / 1e6 == pytest.approx(sum(item.joules for item in made.reports), abs=1e-5)


@given(nodes_of)
@example([("DE", [(5e-324, 1.0, 0)])])
def test_each_region_has_the_intensity_of_its_own_grid(found: Any) -> None:
    made = cluster(found)
    seen: dict[str, list[float]] = defaultdict(list)
    for zone, rows in found:
        seen[zone] += [g_per_kwh for joules, g_per_kwh, _ in rows if joules > 1e-3]
    for item in made.regions:
        if item.line.grams_ng > 1000:
            assert item.line.g_per_kwh is not None
            assert min(seen[item.line.name]) * (1 - 1e-6) <= item.line.g_per_kwh
            assert item.line.g_per_kwh <= max(seen[item.line.name]) * (1 + 1e-6)


@given(st.lists(st.floats(0.0, 1e6), max_size=30), st.sampled_from((1e6, 1e9)))
def test_whole_parts_sum_to_the_whole_and_are_off_by_one_at_most(values: list[float], scale: float) -> None:
    whole = round(math.fsum(values) * scale)
    parts = whole_parts(values, scale, whole)
    assert sum(parts) == (whole if values else 0)
    slack = 1.0 + math.fsum(values) * scale * 1e-12 * len(values)
    assert all(abs(part - value * scale) <= slack for part, value in zip(parts, values, strict=True))


def test_the_same_ledger_under_two_names_is_refused() -> None:
    rows = [(100.0, 300.0, 5)]
    copy = node_report("a", "DE", rows)
    older = node_report("a", "DE", [*rows, (50.0, 200.0, 3)])  # the same run, with more entries since
    for other in (copy, older):
        with pytest.raises(LedgerError, match="both have the run that began on a at 1970-01-01 00:00:00 UTC"):
            cluster_report_of([NodeLedger("a", "", copy), NodeLedger("b", "", other)], OPTIONS)
    bare = msgspec.structs.replace(copy, inputs=msgspec.structs.replace(copy.inputs, runs=()))
    with pytest.raises(LedgerError, match="a and b have the same entries, which would count twice"):
        cluster_report_of([NodeLedger("a", "", bare), NodeLedger("b", "", bare)], OPTIONS)


def test_a_node_without_entries_is_listed_and_adds_nothing() -> None:
    full = NodeLedger("a", "", node_report("a", "DE", [(3.6e6, 100.0, 5)]))
    made = cluster_report_of([full, NodeLedger("b", "eu", None, "the ledger is empty")], OPTIONS)
    assert [(item.line.name, item.region, item.why) for item in made.nodes] == [
        ("a", "DE", ""),
        ("b", "eu", "the ledger is empty"),
    ]
    assert made.total.grams_ng == 130 * 10**9
    assert made.total.embodied_ng is None  # nothing is known of the hardware of a
    with pytest.raises(LedgerError, match="no ledger has anything of the period: the ledger is empty"):
        cluster_report_of([NodeLedger("b", "eu", None, "the ledger is empty")], OPTIONS)


# --- the command ----------------------------------------------------------------------------------------------------

SCENES = {
    "eu-1": LedgerScene(days=0.25, minutes_days=0.05, host="eu-1", zone="DE"),
    "eu-2": LedgerScene(days=0.25, minutes_days=0.05, host="eu-2", zone="DE", seed=2, models=("fashion",)),
    "us-1": LedgerScene(days=0.25, minutes_days=0.05, host="us-1", zone="CAISO", seed=3),
}
NOW = SCENES["eu-1"].end_s + 86_400.0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("ledgers")
    for name, scene in SCENES.items():
        write_ledger(made / f"{name}.db", scene)
    return made


def run(*argv: str) -> int:
    return main(["--cluster", *argv], now=lambda: NOW, environ={})


def test_a_folder_of_ledgers_is_one_report(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(str(folder)) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("Carbon report of this cluster, 3 nodes in 2 regions: 2026-09-22 00:00 UTC")
    assert max(len(line) for line in printed.splitlines() if len(line.split()) > 1) <= 80
    assert "What sharing rows between machines" in " ".join(printed.split())


@pytest.mark.slow
@pytest.mark.parametrize("by", CLUSTER_BY)
def test_every_csv_sums_to_the_last_digit(folder: Path, by: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(str(folder), "--format", "csv", "--by", by) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert run(str(folder), "--format", "json") == 0
    total = json.loads(capsys.readouterr().out)["total"]
    assert sum(Decimal(row["location_based_gco2e"]) for row in rows) == Decimal(total["grams_ng"]).scaleb(-9)
    assert sum(Decimal(row["energy_j"]) for row in rows) == Decimal(total["joules_uj"]).scaleb(-6)
    assert sum(int(row["rows"]) for row in rows) == total["rows"]


def test_a_node_alone_says_the_same_as_in_the_cluster(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(str(folder), "--format", "json") == 0
    whole = msgspec.json.decode(capsys.readouterr().out, type=ClusterReport)
    node = next(item for item in whole.nodes if item.line.name == "us-1")
    assert main([str(folder / "us-1.db"), "--format", "json"], now=lambda: NOW, environ={}) == 0
    alone = msgspec.json.decode(capsys.readouterr().out, type=Report)
    assert node.line.grams_ng == round(alone.operation.grams * 1e9)
    assert (node.line.rows, node.line.requests) == (alone.rows, alone.requests)
    assert node.region == "CAISO"


def test_regions_may_be_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [f"eu={folder / 'eu-1.db'}", f"eu={folder / 'eu-2.db'}", f"us={folder / 'us-1.db'}"]
    assert run(*words, "--format", "csv", "--by", "region") == 0
    assert [row["region"] for row in csv.DictReader(io.StringIO(capsys.readouterr().out))] == ["eu", "us"]


def test_the_same_file_twice_is_refused(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(str(folder / "eu-1.db"), str(folder)) == 2
    assert "is named twice" in capsys.readouterr().err
    (tmp_path / "backup.db").write_bytes((folder / "eu-1.db").read_bytes())
    assert run(str(folder), str(tmp_path / "backup.db")) == 3
    assert "would count twice" in capsys.readouterr().err


def test_nodes_of_one_name_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    for machine in ("one", "two"):
        (tmp_path / machine / "ledger").mkdir(parents=True)
        (tmp_path / machine / "ledger" / "127.0.0.1-8080.db").write_bytes(b"")
    found = named_ledgers([str(tmp_path)], "")
    assert [item.node for item in found] == ["one/127.0.0.1-8080", "two/127.0.0.1-8080"]
    with pytest.raises(ConfigError, match="is named twice"):
        named_ledgers([str(tmp_path), str(tmp_path / "one")], "")
    (tmp_path / "none").mkdir()
    with pytest.raises(LedgerError, match="there is no ledger"):
        named_ledgers([str(tmp_path / "none")], "")


def test_what_was_written_can_be_verified(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page, data = tmp_path / "report.html", tmp_path / "report.json"
    for path in (page, data):
        assert run(str(folder), "--out", str(path)) == 0
        assert main(["--verify", str(path)], environ={}) == 0
        printed = capsys.readouterr().out
        assert "holds  that every sum follows from the reports of its nodes" in printed
    page.write_text(page.read_text().replace("<td", "<td "))
    assert main(["--verify", str(page)], environ={}) == 1
    assert "the text of the page does not follow from its data" in capsys.readouterr().out


def test_a_changed_sum_is_found(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(str(folder), "--format", "json") == 0
    made = msgspec.json.decode(capsys.readouterr().out, type=ClusterReport)
    less = msgspec.structs.replace(made, total=msgspec.structs.replace(made.total, grams_ng=1))
    path = tmp_path / "less.json"
    path.write_bytes(msgspec.json.encode(less))
    assert main(["--verify", str(path)], environ={}) == 1
    assert "its sums do not follow from the reports of its nodes" in capsys.readouterr().out


def test_what_ledgers_have_put_together_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_ledger(tmp_path / "old.db", LedgerScene(days=0.25, minutes_days=0.0, host="old"))
    words = [str(tmp_path), "--from", "2026-09-22T06:00", "--tz", "Asia/Kolkata", "--by", "hour"]
    assert run(*words) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "which the ledger has only as parts of longer entries" in printed
    assert "put entries together into hours of UTC" in printed


CLUSTER = """
[cluster]
folder = "{folder}"

[[region]]
name = "north"

[[region]]
name = "south"

[[node]]
name = "eu-1"
region = "north"

[[node]]
name = "us-1"
region = "south"
port = 8081

[[family]]
family = "fashion"
accuracy_floor = 90.0
slo_ms = 30.0
"""


def test_the_file_of_a_cluster_names_its_nodes_and_regions(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "cluster.toml"
    file.write_text(CLUSTER.format(folder=tmp_path / "cluster"))
    for node in ("eu-1", "us-1"):
        assert run(str(file)) == 3
        assert "us-1 are not on this machine" in capsys.readouterr().err
        own = tmp_path / "cluster" / node / "state" / "ledger"
        own.mkdir(parents=True)
        (own / f"{node}.db").write_bytes((folder / f"{node}.db").read_bytes())
    assert run(str(file), "--format", "csv", "--by", "node") == 0
    found = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [(row["node"], row["region"]) for row in found] == [("eu-1", "north"), ("us-1", "south")]


def test_the_file_of_a_cluster_needs_the_wing_that_reads_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "clover.cluster", None)
    assert run(str(tmp_path / "cluster.toml")) == 2
    text = capsys.readouterr().err
    assert "this installation is without clover.cluster, which reads a cluster's file" in text
    assert text.count("\n") == 1
