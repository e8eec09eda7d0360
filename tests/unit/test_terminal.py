"""Tables on narrow terminals: no cell is cut, empty columns do not stand there, and each column is explained."""

from __future__ import annotations

import io
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from clover import terminal
from clover.cli.ctl.answers import show as show_answer
from clover.research.simulate.records import SCHEMA, Results, RunManifest, Summary
from clover.research.simulate.tables import HEADS, cells, show
from clover.terminal import Column, milliseconds, wrapped


def summary(family: str, policy: str, p95_ms: float, *, turned: float = 0.0, limit: float | None = None) -> Summary:
    return Summary(
        family=family,
        trace="synthetic",
        policy=policy,
        accounting="equal",
        seeds=1,
        saving=0.376,
        active_saving=0.648,
        accuracy=83.87,
        accuracy_loss=0.72,
        p95_ms=p95_ms,
        slo_ms=519.6,
        above=0.01,
        late=0.0,
        changes=2.0,
        grams=1.0,
        energy_j=1.0,
        awake=1.0,
        saving_least=0.3,
        saving_most=0.4,
        saving_std=0.01,
        limit=limit,
        turned=turned,
        confidence="parametric" if "+" in policy else "",
    )


SUMMARIES = (
    summary("efficientnet", "base", 433.0),
    summary("efficientnet", "objective+cascade", 1_241_996.0),
    summary("albert", "base", 3_600_000.0),
    summary("albert", "objective", 89.25),
)


def printed(summaries: tuple[Summary, ...], width: int) -> str:
    manifest = RunManifest(
        schema=SCHEMA,
        command=(),
        versions={},
        machine="",
        made_at="",
        seconds=0.0,
        seeds=1,
        arguments={},
        inputs=(),
        labels=("nothing was measured",),
    )
    out = io.StringIO()
    show(Results(manifest=manifest, summaries=summaries, runs=()), Console(file=out, width=width))
    return out.getvalue()


@pytest.mark.parametrize("width", [60, 80, 120, 205])
def test_what_a_simulation_prints_fits_the_console_and_cuts_no_cell(width: int) -> None:
    text = printed(SUMMARIES, width)
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= width
    words = " ".join(text.split())
    for must in ("efficientnet", "albert", "objective", "20.7 min", "unbounded", "83.87"):
        assert must in words


def test_a_narrow_console_gets_a_block_a_family_and_is_told_what_was_left_out() -> None:
    wide, narrow = printed(SUMMARIES, 205), printed(SUMMARIES, 80)
    assert "left out" not in wide
    assert "albert, synthetic\n" in narrow
    assert "left out at 80 columns: " in narrow
    assert "-o DIR" in narrow


def test_empty_columns_are_not_printed_and_each_printed_one_is_explained_in_a_line() -> None:
    text = printed(SUMMARIES, 205)
    heads = text.splitlines()[1].split("  ")
    shown = [head.strip() for head in heads if head.strip()]
    assert not {"limit", "gap", "margin", "over seeds", "turned"} & set(shown)
    for head in shown[3:]:
        assert any(line.startswith(f"{head} ") for line in text.splitlines()[2:]), head
    assert not any(line.startswith("turned") for line in text.splitlines())
    more = printed((*SUMMARIES, summary("albert", "budget", 80.0, turned=12.0, limit=0.5)), 205)
    assert {"turned", "limit", "gap"} <= set(more.splitlines()[1].split())
    assert all(len(cells(item)) == len(HEADS) for item in SUMMARIES)


@pytest.mark.parametrize(
    ("ms", "text"), [(0.0, "0 ms"), (0.25, "0.25 ms"), (84.06, "84.1 ms"), (2_500, "2.5 s"), (1_241_996, "20.7 min")]
)
def test_durations_are_in_the_unit_that_reads_best(ms: float, text: str) -> None:
    assert milliseconds(ms) == text


def test_columns_to_spare_go_first_and_others_never() -> None:
    columns = [Column("name"), Column("first to go", spare=2), Column("next", spare=1)]
    rows = [("a" * 20, "b", "c")]
    assert terminal.fitting(columns, rows, [0, 1, 2], 40) == [0, 1, 2]
    assert terminal.fitting(columns, rows, [0, 1, 2], 30) == [0, 2]
    assert terminal.fitting(columns, rows, [0, 1, 2], 5) == [0]


def test_a_pipe_is_as_wide_as_columns_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdout", io.StringIO())
    monkeypatch.delenv("COLUMNS", raising=False)
    assert terminal.console(140).width == 140
    monkeypatch.setenv("COLUMNS", "80")
    assert terminal.console(140).width == 80
    monkeypatch.setenv("COLUMNS", "wide")
    assert terminal.console(140).width == 140


@pytest.mark.parametrize("width", [50, 80, 140])
def test_decisions_fit(width: int) -> None:
    decision = {
        "id": 1234,
        "at": "2024-01-31T00:00:00.000+00:00",
        "family": "fashion",
        "trigger": "intensity",
        "action": "applied",
        "detail": "",
        "operator": "",
        "plan": {"reason": "cleaner grid and more accuracy: 2 x large@2c instead of 4 x small@1c"},
    }
    out = io.StringIO()
    show_answer("decisions", [decision], Console(file=out, width=width))
    text = out.getvalue()
    assert max(map(len, text.splitlines())) <= max(width, 57)
    assert "2024-01-31 00:00:00" in text
    assert "cleaner grid" in text


def test_a_listing_is_wrapped_and_cuts_no_word() -> None:
    rows = [
        ("Clover", "0.1.0 at http://127.0.0.1:8080"),
        ("warning", "give your own: --carbon trace:FILE or " + "x" * 50),
    ]
    assert terminal.listing(rows, 10_000).count("\n") == 1
    lines = terminal.listing(rows, 40).splitlines()
    assert lines == [
        "  Clover   0.1.0 at",
        "           http://127.0.0.1:8080",
        "  warning  give your own: --carbon",
        "           trace:FILE or",
        "           " + "x" * 50,
    ]


@given(st.lists(st.text("ab-/`", min_size=1, max_size=12), max_size=20).map(" ".join), st.integers(8, 40))
def test_wrapping_keeps_every_word_and_each_command_on_a_line(text: str, columns: int) -> None:
    lines = wrapped(text, columns, "  ").split("\n")
    assert [word for line in lines for word in line.split()] == text.split()
    for command in re.findall("`[^`]*`", text):
        assert any(command in line for line in lines)
    for line in lines:
        assert len(line) <= columns or len(re.sub("`[^`]*`", "x", line).split()) <= 1, "one word, or one command"
