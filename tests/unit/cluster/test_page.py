"""The cluster's page: it shows what the status says, trusts no name in it, and loads nothing."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clover.cluster.controller_records import ClusterStatus
from clover.cluster.page import DATA_ID, page
from clover.planning.cluster.records import RegionFlow
from tests.support.cluster_statuses import cluster_status

EVIL = "</script><script>alert(1)</script>\"'&<b>"


class Cells(HTMLParser):
    """Collects the rows of all tables, the tags, and addresses that are loaded."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.open: list[str] = []
        self.loaded: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.loaded += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag in ("meta", "link", "path"):
            return
        self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        if tag != "path":
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("td", "th"):
            self.rows[-1][-1] += data


def row(text: str, *begin: str) -> list[str]:
    (found,) = [cells for cells in Cells(text).rows if cells[: len(begin)] == list(begin)]
    return found


def test_it_shows_regions_nodes_flows_and_what_was_saved() -> None:
    text = page(cluster_status())
    assert row(text, "eu-west", "210") == [
        "eu-west", "210", "electricitymaps, live, 2 min 20 s old", "1 of 3", "6", "400", "90", "930 W", "195 g/h",
    ]  # fmt: skip
    assert row(text, "eu-north-1")[2:9] == [
        "ready", "172", "18.3 ms", "91.20 %", "2 x a100-40gb", "20 %", "2 s ago",
    ]  # fmt: skip
    assert row(text, "us-east-2")[2] == "lost, held awake"
    assert row(text, "fashion", "eu-west", "eu-north")[3:] == ["310", "37.2 %", "moves"]
    assert "<strong>37.5 %</strong><p>less than that now</p>" in text
    assert "at most 25 % above the least" in text
    assert "us-east-2 does not answer since 12:28 UTC" in text
    assert "42.3 % of the rows are answered in another region." in text


def test_more_emitted_than_the_comparison_is_said() -> None:
    status = cluster_status()
    text = page(msgspec.structs.replace(status, alone_g_h=status.grams_h / 1.25))
    assert "<strong>25 %</strong><p>MORE than that now</p>" in text


def test_the_status_can_be_read_back_from_the_page() -> None:
    status = cluster_status(name=EVIL)
    text = page(status)
    found = re.search(rf'id="{DATA_ID}">(.*?)</script>', text, re.DOTALL)
    assert found is not None
    assert msgspec.json.decode(found[1], type=ClusterStatus) == status
    assert "alert(1)</script>" not in text
    assert text.count("<script") == 2  # the one that prints, and the data


def test_it_loads_nothing() -> None:
    assert Cells(page(cluster_status())).loaded == []


def test_a_cluster_before_its_first_plan_has_a_page() -> None:
    empty = msgspec.structs.replace(
        cluster_status(), regions=(), nodes=(), families=(), flows=(), decisions=(), troubles=(), controlling=False,
        grams_h=0.0, bound_g_h=0.0, alone_g_h=0.0, awake_g_h=0.0,
    )  # fmt: skip
    text = page(empty)
    for words in ("There is no plan yet.", "There are no nodes.", "not in control", "not known"):
        assert words in text


@pytest.mark.parametrize("more", [0, 400])
def test_many_nodes_are_folded_and_those_in_trouble_stay_in_sight(more: int) -> None:
    text = page(cluster_status(nodes=more))
    seen = text.partition("<details>")[0]
    assert "us-east-2" in seen
    assert ("more-399" in text, "more-399" in seen) == (bool(more), False)


names = st.text(min_size=1, max_size=6)


@given(st.lists(st.tuples(names, names, st.floats(0.0, 1e9)), max_size=8))
def test_flows_of_any_names_and_sizes_are_drawn(flows: list[tuple[str, str, float]]) -> None:
    found = tuple(
        RegionFlow(family="fashion", origin=origin, region=region, rate=rate) for origin, region, rate in flows
    )
    text = page(msgspec.structs.replace(cluster_status(), flows=found, nodes=(), regions=(), families=()))
    drawn = {(origin, region) for origin, region, rate in flows if rate > 0.0}
    assert text.count("<path") == len(drawn)
    for width in re.findall(r'stroke-width="([\d.]+)"', text):
        assert 1.0 <= float(width) <= 34.0


def test_the_command_writes_the_page_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from clover.cli.cluster import command
    from clover.cluster import cluster_file

    handle = SimpleNamespace(status=cluster_status)
    monkeypatch.setattr(command, "ClusterHandle", SimpleNamespace(attach=lambda file: handle))
    monkeypatch.setattr(cluster_file, "read", lambda path: None)
    monkeypatch.setattr(command, "show_status", lambda status, file, width: "shown")
    out = tmp_path / "cluster.html"
    assert command.main(["status", "cluster.toml", "--html", str(out)]) == 0
    assert out.read_text(encoding="utf-8") == page(cluster_status())
    assert [path.name for path in tmp_path.iterdir()] == ["cluster.html"]
    assert command.main(["status", "cluster.toml", "--html", str(tmp_path / "no" / "a.html")]) == 2
