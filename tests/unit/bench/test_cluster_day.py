"""The figures of `bench.cluster_day`: what failed when, where rows were answered, and how right answers were."""

from __future__ import annotations

import argparse
import asyncio
import json
import math
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
import pytest

from bench import cluster_load
from bench.cluster_day import write_cluster
from bench.cluster_day_page import page
from bench.cluster_day_report import HOURS, Seen, accuracy, follows, grams, hours, killed, moves, tally, ways
from bench.cluster_kills import Kill, settled
from bench.cluster_load import Asked, Failure, Load, questions
from clover.cluster.controller.records import ClusterNodeStatus, ClusterRegionStatus, ClusterStatus, ClusterTotals

SERVERS = {"aaa": "north", "bbb": "south"}


def status(
    phases: Sequence[str] = ("ready", "ready"),
    grids: tuple[float, float] = (100.0, 300.0),
    planned: tuple[float, float] = (1.0, 0.0),
    totals: ClusterTotals | None = None,
) -> ClusterStatus:
    names = ("north", "south")
    return ClusterStatus(
        at_s=0.0,
        epoch=1,
        controlling=True,
        reason="",
        regions=tuple(
            ClusterRegionStatus(name=name, intensity=grid, answered=rate)
            for name, grid, rate in zip(names, grids, planned, strict=True)
        ),
        nodes=tuple(
            ClusterNodeStatus(name=f"{name}-1", region=name, phase=phase, devices={})  # type: ignore[arg-type]
            for name, phase in zip(names, phases, strict=True)
        ),
        families=(),
        flows=(),
        weights={},
        totals=totals or ClusterTotals(since_s=0.0),
    )


def answered(due_s: float, server: str = "aaa", *, points: float = 90.0, right: bool = True, **other: object) -> Asked:
    given = {"origin": "north", "done_s": due_s + 0.1, "variant": "small", **other}
    return Asked(due_s=due_s, server=server, accuracy=points, correct=right, **given)  # type: ignore[arg-type]


def test_requests_are_told_apart_by_whether_an_answer_had_begun_and_ever_came() -> None:
    early, late = Failure(1.0, 1.1, "closed"), Failure(2.0, 2.1, "closed", begun=True)
    asked = [
        answered(0.0),
        answered(1.0, failures=[early]),
        answered(2.0, failures=[late, early]),
        Asked("north", 3.0, failures=[Failure(3.0, 3.0, "503")]),
    ]
    found = tally(asked)
    assert (found["requests"], found["answered"], found["failed_first"], found["begun"], found["lost"]) == (
        4,
        3,
        3,
        1,
        1,
    )
    assert found["failed_tries"] == {"closed": 3, "503": 1}
    assert found["p95_ms"] == pytest.approx(100.0)


def test_accuracy_is_the_mean_over_all_answers() -> None:
    rows = [answered(0.0, points=80.0), answered(1.0, points=90.0, right=False, variant="large"), Asked("north", 2.0)]
    found = accuracy(rows)
    assert (found["rows"], found["expected"], found["right"]) == (2, 85.0, 50.0)
    assert found["variants"] == {"small": 1, "large": 1}
    assert math.isnan(accuracy([])["expected"])


def test_rows_that_follow_the_cleaner_region_are_seen_to() -> None:
    seen, asked = [], []
    for hour in range(HOURS):
        clean = hour < HOURS // 2
        grids, planned = ((100.0, 300.0), (2.0, 0.0)) if clean else ((300.0, 100.0), (0.0, 2.0))
        seen.append(Seen(10.0 + hour, status(grids=grids, planned=planned)))
        asked += [
            answered(10.0 + hour + part, "aaa" if clean else "bbb", done_s=10.0 + hour + part) for part in (0.2, 0.7)
        ]
    asked.append(answered(12.0, "aaa", done_s=10.0 + HOURS))  # after the end
    found = hours(asked, seen, SERVERS, 10.0, 10.0 + HOURS)
    assert [hour.answered["north"] for hour in found] == [2.0] * 12 + [0.0] * 12
    assert found[0].awake == {"north": 1.0, "south": 1.0}
    shown = follows(found)
    assert shown["by_plan"] == shown["as_answered"] == pytest.approx(-1.0)
    assert (shown["g_per_kwh_of_rows"], shown["g_per_kwh_equal"], shown["elsewhere"]) == (100.0, 200.0, 0.0)
    away = follows(hours([answered(10.5, "bbb")], seen[:1], SERVERS, 10.0, 34.0))
    assert away["elsewhere"] == 1.0
    assert math.isnan(away["by_plan"])


def test_the_declared_way_is_added_to_what_was_measured() -> None:
    rows = ways([answered(0.0), answered(0.0, "bbb"), answered(0.0, "zzz")], SERVERS, {"north": {"south": 20.0}})
    assert [(row["to"], row["rows"], round(row["p95_ms"]), round(row["with_way_ms"])) for row in rows] == [
        ("north", 1, 100, 100),
        ("south", 1, 100, 120),
    ]


def test_nodes_that_go_and_come_back_are_counted() -> None:
    phases = ["ready", "draining", "released", "released", "waking", "ready", "draining", "released"]
    seen = [Seen(float(at), status((phase, "ready"))) for at, phase in enumerate(phases)]
    assert moves(seen) == {"released": 2, "back": 1}


def test_grams_are_those_between_the_first_look_and_the_last() -> None:
    first = ClusterTotals(since_s=0.0, planned_g=5.0, alone_g=5.0, awake_g=5.0, reported_g=1.0)
    last = ClusterTotals(since_s=0.0, planned_g=8.0, alone_g=11.0, awake_g=17.0, reported_g=2.0)
    found = grams([Seen(0.0, status(totals=first)), Seen(1.0, status(totals=last))])
    assert (found["planned_g"], found["saved_against_alone"], found["saved_against_awake"]) == (3.0, 0.5, 0.75)
    assert found["reported_g"] == 1.0


def test_a_try_counts_for_the_kill_after_which_it_failed() -> None:
    asked = [
        answered(9.0, failures=[Failure(9.0, 10.5, "closed")]),
        answered(19.9, failures=[Failure(19.9, 20.1, "closed", begun=True)]),
        Asked("north", 25.0, failures=[Failure(25.0, 25.1, "503")]),
        answered(26.0),
    ]
    first, second = killed([Kill("one", 10.0, 3.0), Kill("two", 20.0)], asked, 30.0)
    assert (first["failed_first"], first["begun"], first["lost"], first["requests"]) == (1, 0, 0, 1)
    assert (second["failed_first"], second["begun"], second["lost"], second["requests"]) == (2, 1, 1, 2)
    assert second["why"] == {"closed": 1, "503": 1}


def test_the_page_says_what_was_found() -> None:
    part = {
        "seconds": 600.0,
        "busy": 0.5,
        "load_average": 1.25,
        **tally([answered(0.0)]),
        "accuracy": accuracy([answered(0.0)]),
    }
    seen = [Seen(float(at), status()) for at in range(HOURS)]
    by_hour = hours([answered(0.0)], seen, SERVERS, 0.0, float(HOURS))
    day = {
        **part,
        "unknown_server": 0,
        "follows": follows(by_hour),
        "hours": [vars(hour) for hour in by_hour],
        "ways": ways([answered(0.0)], SERVERS, {}),
        "grams": grams(seen),
        "moves": moves(seen),
    }
    kills = {**part, "kills": killed([Kill("HAProxy", 0.0, 1.0, (3, 4))], [answered(0.0)], 10.0)}
    found = {"traces": [], "family": "toy", "on_cores": False, "rate": 20.0, "floor": 90.0, "slo_ms": 500.0}
    where = {"processor": "a processor", "cores": 2, "date": "2026-11-28", "command": "python -m bench"}
    text = page({**found, "day": day, "kills": kills}, where)
    assert "(+0.00 of the floor: within 0.1)" in text
    assert "| HAProxy | 1.0 | 1 | 0; 0 | 0 | 3 → 4 | 100 |" in text
    assert "a processor, 2 cores, 2026-11-28" in text


def test_a_cluster_is_as_before_if_what_was_killed_is_back_whatever_the_grids_wake() -> None:
    assert settled(status(("ready", "waking")), "north-1")
    assert not settled(status(("ready", "waking")), "south-1")
    assert not settled(status(("ready", "partitioned")))
    assert not settled(msgspec.structs.replace(status(), controlling=False))


def test_the_cluster_of_the_bench_has_nodes_at_addresses_of_their_own(tmp_path: Path) -> None:
    given = {"minutes": 10.0, "floor": 0.0, "slo": 300.0, "family": "toy", "traces": (), "cores": False, "cache": ""}
    file, ports = write_cluster(tmp_path, argparse.Namespace(**given))
    assert [node.address for node in file.node] == ["127.0.0.2", "127.0.0.3", "127.0.0.4"]
    assert len({*ports.values(), *(node.port for node in file.node)}) == 6
    assert file.cluster.budget_s == 600.0
    assert file.region[0].latency_ms == {"middle": 20.0, "east": 40.0}
    paces = json.loads((tmp_path / "pace.json").read_text())
    assert paces["method"] == "configured"
    assert {row["variant"] for row in paces["rows"]} == {"half", "full"}


# --- clients ----------------------------------------------------------------------------------------------------------


class Server:
    """Answers in turn as `fates` say: a status, "cut" (the connection ends), "half" (within the answer)."""

    def __init__(self, fates: Sequence[int | str]) -> None:
        self.fates = list(fates)
        self.served = 0
        self.enough = asyncio.Event()
        self.tasks: set[asyncio.Task[None]] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.tasks.add(task)
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
                await reader.readexactly(length)
                fate = self.fates[min(self.served, len(self.fates) - 1)]
                self.served += 1
                if self.served >= 20:
                    self.enough.set()
                if fate == "cut":
                    return
                receipt = {"variant": "small", "accuracy": 87.5}
                document = {"parameters": {"clover_receipt": receipt}, "outputs": [{"data": [0.1, 0.9]}]}
                body = json.dumps(document).encode()
                status_line = 200 if fate == "half" else fate
                lines = f"HTTP/1.1 {status_line} x\r\nx-request-id: abc-1-2\r\nContent-Length: {len(body)}\r\n\r\n"
                writer.write(lines.encode() + (body[:10] if fate == "half" else body))
                if fate == "half":
                    return
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


def test_a_client_tries_again_and_says_what_each_try_came_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster_load, "FIRST_PAUSE_S", 0.0)
    given = questions("x", np.zeros((1, 2), np.float32), np.array([1]), 1)

    async def story(fates: Sequence[int | str]) -> Asked:
        serving = Server(fates)
        server = await asyncio.start_server(serving.serve, "127.0.0.1", 0)
        load = Load({"north": server.sockets[0].getsockname()[1]}, 1.0, given, "toy")
        asked = Asked("north", 0.0)
        await load._ask(asked, given[0])
        load.disconnect()
        await asyncio.gather(*serving.tasks)
        server.close()
        return asked

    asked = asyncio.run(story([503, "cut", "half", 200]))
    assert [(one.why, one.begun) for one in asked.failures] == [
        ("503", False),
        ("closed without an answer", False),
        ("closed without an answer", True),
    ]
    assert (asked.variant, asked.accuracy, asked.correct, asked.server) == ("small", 87.5, True, "abc")
    asked = asyncio.run(story([503]))
    assert (asked.done_s, len(asked.failures)) == (None, cluster_load.TRIES)


def test_load_is_open_and_ends_with_its_answers() -> None:
    given = questions("x", np.zeros((1, 2), np.float32), np.array([1]), 1)

    async def story() -> Load:
        serving = Server([200])
        server = await asyncio.start_server(serving.serve, "127.0.0.1", 0)
        load = Load({"north": server.sockets[0].getsockname()[1]}, 500.0, given, "toy")
        load.start()
        await asyncio.wait_for(serving.enough.wait(), 10.0)
        await asyncio.to_thread(load.stop)
        await asyncio.gather(*serving.tasks)
        server.close()
        return load

    load = asyncio.run(story())
    assert tally(load.asked)["failed_first"] == 0
    assert all(one.done_s is not None and one.done_s >= one.due_s for one in load.asked)
    assert len(load.asked) >= 20
