"""`clover report --cluster`: one report of the ledgers of several servers."""

from __future__ import annotations

import argparse
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import tzinfo
from pathlib import Path

from clover import terminal
from clover.cli.progress import Progress
from clover.errors import ConfigError, LedgerError
from clover.report.build import ReportOptions
from clover.report.calendar import moment, time_words, zone_of
from clover.report.cli.options import (
    WIDTH,
    StatedSettings,
    configured,
    format_of,
    json_of,
    market,
    usual_time,
    write,
)
from clover.report.cluster import ClusterOptions, NodeLedger, cluster_report_of
from clover.report.cluster_records import ClusterBy, ClusterReport
from clover.report.making import NothingRecorded, application_of, report_from, settled_end, written_until
from clover.report.render.cluster import cluster_csv, cluster_parquet, cluster_report_page, cluster_text
from clover.telemetry.ledger import LedgerReader
from clover.telemetry.ledger.files import SUFFIX, ledgers_in

_REGION = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*)=(.+)")


@dataclass(frozen=True)
class NamedLedger:
    """A ledger that was named: its file, the node's name, and its region (empty: that of its grid)."""

    path: Path
    node: str
    region: str


def report(given: argparse.Namespace, environ: Mapping[str, str], now: float) -> None:
    """Make the report of the ledgers that are named, or of all in the state folder, and write it.  Raises ConfigError,
    LedgerError."""
    form = format_of(given)
    stated, zone = configured(given, environ), zone_of(given.tz)
    ledgers = named_ledgers(given.ledgers, stated.state_dir)
    with Progress("report", f"reading {len(ledgers)} ledgers") as progress, ExitStack() as stack:
        readers = [(item, _open_ledger(item, stack)) for item in ledgers]
        start, end, edges = _period(given, readers, zone, now)
        nodes: list[NodeLedger] = []
        for item, reader in readers:
            progress.note(f"reading {item.path.name}", len(nodes), len(readers))
            nodes.append(_node(item, reader, _options(given, stated, zone, (start, end, now))))
    options = ClusterOptions(
        start=start,
        end=end,
        made=now,
        application=application_of(stated.report),
        zone=zone,
        zone_name=given.tz,
        edges=edges,
    )
    made = cluster_report_of(nodes, options)
    by: ClusterBy = given.by or ("node" if form in ("csv", "parquet") else usual_time(end - start, form))
    write(_document(made, form, by, zone), given.out)


def named_ledgers(named: Sequence[str], state_dir: str) -> list[NamedLedger]:
    """Return the ledgers that the words of a command line name: files, folders, each also as REGION=PATH, and files of
    `clover cluster` (.toml), whose nodes they are; without any, those of the state folder.  Nodes are called by the
    name of their file, with that of the folder if two have the same.  Raises ConfigError if one is named twice,
    LedgerError if there is none."""
    files: list[tuple[Path, str]] = []
    for word in named:
        path, region = _region_of(word)
        if path.suffix == ".toml":
            files += _of_nodes(path)
        elif path.is_dir():
            inside = sorted(path.rglob(f"*{SUFFIX}"))
            if not inside:
                raise LedgerError(f"there is no ledger (*{SUFFIX}) in {path}")
            files += [(file, region) for file in inside]
        else:
            files.append((path, region))
    if not named:
        files = [(path, "") for path in sorted(ledgers_in(state_dir))]
    if not files:
        raise LedgerError("there is no ledger in the state folder: name files, or folders that ledgers lie in")
    seen: dict[object, Path] = {}
    for path, _ in files:
        other = seen.setdefault(_identity(path), path)
        if other is not path:
            raise ConfigError(f"{path} is named twice (also as {other}), and would count twice")
    stems = Counter(path.stem for path, _ in files)
    names = [path.stem if stems[path.stem] == 1 else _longer(path) for path, _ in files]
    if len(set(names)) < len(names):
        names = [str(path) for path, _ in files]
    return [NamedLedger(path, name, region) for (path, region), name in zip(files, names, strict=True)]


def _of_nodes(path: Path) -> list[tuple[Path, str]]:
    """Return the ledgers of the nodes of a cluster's file, with their regions.  Raises ConfigError if that cannot be
    read, LedgerError if a node's are not on this machine: the sum would be too small."""
    try:
        from clover.cluster import cluster_file
        from clover.cluster.controller.actor import folder_of
    except ModuleNotFoundError as error:
        if error.name != "clover.cluster":
            raise
        raise ConfigError(
            f"{path}: this installation is without clover.cluster, which reads a cluster's file: install Clover with "
            "it, or name the ledgers of the nodes"
        ) from None

    file = cluster_file.read(path)
    folder, found, missing = folder_of(file), [], []
    for node in file.node:
        own = sorted(ledgers_in(str(folder / node.name / "state")))
        found += [(ledger, node.region) for ledger in own]
        missing += [] if own else [node.name]
    if missing:
        raise LedgerError(
            f"the ledgers of {', '.join(missing)} are not on this machine: copy NODE/state of each into {folder}, or "
            "name the ledgers that are to be added up"
        )
    return found


def _region_of(word: str) -> tuple[Path, str]:
    match = _REGION.fullmatch(word)
    if match is None or Path(word).exists():
        return Path(word), ""
    return Path(match[2]), match[1]


def _identity(path: Path) -> object:
    try:
        status = path.stat()
    except OSError as error:
        raise LedgerError(f"{path}: {error.strerror}") from error
    return status.st_dev, status.st_ino


def _longer(path: Path) -> str:
    """Return FOLDER/NAME for a ledger FOLDER/NAME.db, and MACHINE/NAME for MACHINE/ledger/NAME.db."""
    folder = path.absolute().parent
    return f"{(folder.parent if folder.name == 'ledger' else folder).name}/{path.stem}"


def _open_ledger(item: NamedLedger, stack: ExitStack) -> LedgerReader:
    try:
        return stack.enter_context(LedgerReader(item.path))
    except LedgerError as error:
        raise LedgerError(f"{item.path}: {error}") from error


def _period(
    given: argparse.Namespace, readers: Sequence[tuple[NamedLedger, LedgerReader]], zone: tzinfo, now: float
) -> tuple[float, float, str]:
    """Return the period in Unix seconds, the same for all nodes: what was asked for, or all that any ledger has, up to
    what all of them have surely written; and in words, if it was cut there."""
    known = [(bounds, ledger) for _, ledger in readers if (bounds := ledger.bounds()) is not None]
    if not known:
        raise LedgerError("the ledgers are empty: nothing was recorded yet")
    until = min(written_until(ledger, bounds, now) for bounds, ledger in known)
    start = moment(given.start, zone, now) if given.start else min(float(bounds[0]) for bounds, _ in known)
    end = moment(given.end, zone, now) if given.end else max(settled_end(bounds, until) for bounds, _ in known)
    if start >= end:
        raise ConfigError(f"--from {given.start or time_words(start, zone)} is not before {time_words(end, zone)}")
    if given.end and start < until < end:
        return start, until, f"asked was until {time_words(end, zone)}, which is not over yet"
    return start, end, ""


def _options(
    given: argparse.Namespace, stated: StatedSettings, zone: tzinfo, times: tuple[float, float, float]
) -> ReportOptions:
    start, end, now = times
    return ReportOptions(
        start=start,
        end=end,
        made=now,
        application=application_of(stated.report),
        market_g_per_kwh=market(given, stated.report),
        market_source=given.market_source or stated.report.market_source,
        zone=zone,
        zone_name=given.tz,
    )


def _node(item: NamedLedger, ledger: LedgerReader, options: ReportOptions) -> NodeLedger:
    """Return the node's own report; one whose ledger has nothing of the period is listed with the reason."""
    try:
        made = report_from(ledger, replace(options, server=item.node))
    except NothingRecorded as error:
        return NodeLedger(item.node, item.region, None, str(error))
    except LedgerError as error:
        raise LedgerError(f"{item.path}: {error}") from error
    return NodeLedger(item.node, item.region, made)


def _document(made: ClusterReport, form: str, by: ClusterBy, zone: tzinfo) -> bytes:
    if form == "json":
        return json_of(made)
    if form == "csv":
        return cluster_csv(made, by).encode()
    if form == "parquet":
        return cluster_parquet(made, by)
    if form == "html":
        return cluster_report_page(made, zone).encode()
    return cluster_text(made, by, zone, terminal.console(WIDTH).width).encode()
