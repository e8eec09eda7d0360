"""The control client against a server that records what it is asked."""

from __future__ import annotations

import copy
import json
import re
import socketserver
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from clover.cli import infer
from clover.cli.ctl import main
from clover.control.wording import troubles, verdict
from tests.support.http_fakes import make_certificate

ROOT = Path(__file__).resolve().parents[3]
DECISION = {
    "id": 7,
    "at": "2024-01-31T00:00:00.000+00:00",
    "family": "fashion",
    "trigger": "intensity",
    "action": "applied",
    "detail": "",
    "operator": "127.0.0.1",
    "plan": {"reason": "cleaner grid [and] more accuracy"},
}


class Handler(BaseHTTPRequestHandler):
    """Answers with `server.answer` and keeps what came."""

    def _answer(self) -> None:
        size = int(self.headers.get("Content-Length", 0))
        body = json.loads(self.rfile.read(size)) if size else None
        self.server.seen.append((self.command, self.path, body, self.headers.get("Authorization")))  # type: ignore[attr-defined]
        status, answer = self.server.answer  # type: ignore[attr-defined]
        data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_POST = _answer

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def address_string(self) -> str:
        return "test"


class UnixServer(socketserver.UnixStreamServer):
    seen: list[Any]
    answer: tuple[int, Any]


@pytest.fixture
def server() -> Iterator[Any]:
    made = HTTPServer(("127.0.0.1", 0), Handler)
    made.seen = []  # type: ignore[attr-defined]
    made.answer = (200, {"ok": True})  # type: ignore[attr-defined]
    thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield made
    made.shutdown()
    thread.join()
    made.server_close()


def ctl(server: Any, *argv: str, **environ: str) -> int:
    return main(argv, {"CLOVER_URL": f"http://127.0.0.1:{server.server_port}", **environ})


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["state"], ("GET", "/v2/clover/state", None)),
        (["tenants"], ("GET", "/v2/clover/state", None)),
        (["decisions", "--limit", "3"], ("GET", "/v2/clover/decisions?limit=3", None)),
        (["decisions", "-n", "3"], ("GET", "/v2/clover/decisions?limit=3", None)),
        (["pin", "small"], ("POST", "/v2/clover/pin", {"variant": "small"})),
        (["pin", "small", "--force"], ("POST", "/v2/clover/pin", {"variant": "small", "force": True})),
        (["apply", "--force"], ("POST", "/v2/clover/apply", {"force": True})),
        (["set", "--force", "slo_ms=1"], ("POST", "/v2/clover/set", {"slo_ms": 1.0, "force": True})),
        (["set", "slo_ms", "20"], ("POST", "/v2/clover/set", {"slo_ms": 20.0})),
        (["set", "slo_ms", "20", "mode=off"], ("POST", "/v2/clover/set", {"slo_ms": 20.0, "mode": "off"})),
        (["plan", "lam", "none"], ("POST", "/v2/clover/plan", {"lambda": None})),
        (["pin", "--off", "--model", "f"], ("POST", "/v2/clover/pin", {"variant": None, "model": "f"})),
        (["freeze"], ("POST", "/v2/clover/freeze", {"on": True})),
        (["guard", "reset"], ("POST", "/v2/clover/guard", {"reset": True})),
        (["freeze", "--off"], ("POST", "/v2/clover/freeze", {"on": False})),
        (["roll-out", "/m/2"], ("POST", "/v2/clover/roll-out", {"folder": "/m/2"})),
        (
            ["roll-out", "toy", "/m/2", "--percent", "5", "--version", "2b", "--dry-run"],
            (
                "POST",
                "/v2/clover/roll-out",
                {
                    "model": "toy",
                    "folder": "/m/2",
                    "percent": 5.0,
                    "version": "2b",
                    "dry_run": True,
                },
            ),
        ),
        (["roll-out", "toy", "--promote"], ("POST", "/v2/clover/roll-out", {"model": "toy", "action": "promote"})),
        (["roll-out", "--roll-back"], ("POST", "/v2/clover/roll-out", {"action": "roll-back"})),
        (["plan"], ("POST", "/v2/clover/plan", {})),
        (["apply", "--dry-run"], ("POST", "/v2/clover/apply", {"dry_run": True})),
        (
            ["apply", "small@1cx2", "large@2c"],
            (
                "POST",
                "/v2/clover/apply",
                {
                    "configuration": [
                        {"variant": "small", "profile": "1c", "count": 2},
                        {"variant": "large", "profile": "2c", "count": 1},
                    ]
                },
            ),
        ),
        (
            ["plan", "arrival_rate=50", "small@1c", "--model", "f"],
            (
                "POST",
                "/v2/clover/plan",
                {
                    "model": "f",
                    "arrival_rate": 50.0,
                    "configuration": [{"variant": "small", "profile": "1c", "count": 1}],
                },
            ),
        ),
        (
            ["pin", "small@1cx2"],
            (
                "POST",
                "/v2/clover/pin",
                {"configuration": [{"variant": "small", "profile": "1c", "count": 2}]},
            ),
        ),
        (["base"], ("POST", "/v2/clover/base", {})),
        (
            ["set", "slo_ms=20", "lam=none", "mode=observe"],
            ("POST", "/v2/clover/set", {"slo_ms": 20.0, "lambda": None, "mode": "observe"}),
        ),
    ],
)
def test_what_is_sent(server: Any, argv: list[str], expected: Any) -> None:
    server.answer = (200, [] if argv[0] == "decisions" else {})
    assert ctl(server, *argv) == 0
    assert [seen[:3] for seen in server.seen] == [expected]


def test_token_from_environment_flag_and_file(server: Any, tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("from-file\nmore\n", encoding="utf-8")
    ctl(server, "state", CLOVER_TOKEN="from-env")
    ctl(server, "--token", "from-flag", "state", CLOVER_TOKEN="from-env")
    ctl(server, "--token", f"file:{file}", "state")
    ctl(server, "state")
    ctl(server, "state", "--token", "after")
    expected = ["Bearer from-env", "Bearer from-flag", "Bearer from-file", None, "Bearer after"]
    assert [seen[3] for seen in server.seen] == expected


def test_url_and_json_on_either_side_of_the_verb(server: Any, capsys: pytest.CaptureFixture[str]) -> None:
    url = f"http://127.0.0.1:{server.server_port}"
    for argv in (
        ["--url", url, "--json", "state"],
        ["state", "--json", "--url", url],
        ["--json", "state", "--url", url],
    ):
        assert main(argv, {"CLOVER_URL": "http://127.0.0.1:1"}) == 0
        assert json.loads(capsys.readouterr().out) == {"ok": True}


def test_the_state_of_one_family(server: Any, capsys: pytest.CaptureFixture[str]) -> None:
    server.answer = (
        200,
        {
            "models": {"fashion": {"mode": "active"}, "toy": {"mode": "observe"}},
            "totals": {"pue": 1.5, "models": {"fashion": {"rows": 3}, "toy": {"rows": 4}}},
        },
    )
    assert ctl(server, "state", "--model", "toy", "--json") == 0
    assert json.loads(capsys.readouterr().out) == {
        "models": {"toy": {"mode": "observe"}},
        "totals": {"pue": 1.5, "models": {"toy": {"rows": 4}}},
    }
    assert ctl(server, "state", "--model", "fashio") == 2
    assert "did you mean fashion?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "text"),
    [
        (["base"], "pinned: no trigger changes it until `python -m clover ctl pin --off`"),
        (["pin", "small", "--model", "f"], "until `python -m clover ctl pin --off --model f`"),
        (["freeze"], "until `python -m clover ctl freeze --off`"),
        (["apply", "intensity_g_per_kwh=500"], "transient: at the next trigger"),
    ],
)
def test_how_long_it_lasts(server: Any, argv: list[str], text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert ctl(server, *argv) == 0
    assert text in capsys.readouterr().out
    assert ctl(server, *argv, "--json") == 0
    assert text not in capsys.readouterr().out
    server.answer = (200, {"dry_run": True})
    assert ctl(server, *argv, "--dry-run") == 0
    shown = capsys.readouterr().out
    assert shown.startswith("dry run: nothing changed\n")
    assert text not in shown


@pytest.mark.parametrize(
    ("argv", "answer", "text"),
    [
        (["guard", "reset"], {"reset": True, "before": {"f": "ok"}}, "f: guard reset; it was ok"),
        (["freeze"], {"frozen": True, "models": ["f", "g"]}, "f, g: frozen"),
        (["freeze", "--off"], {"frozen": False, "models": ["f"]}, "f: planned again"),
        (["freeze"], {"frozen": True, "models": []}, "every model: frozen"),
    ],
)
def test_what_was_done_is_said_in_words(
    server: Any, argv: list[str], answer: dict[str, Any], text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    server.answer = (200, {**answer, "dry_run": False})
    assert ctl(server, *argv) == 0
    assert capsys.readouterr().out.splitlines()[0] == text


def test_a_roll_out_fits_80_columns(
    server: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    test = {"mean": None, "margin": 0.005, "observations": 0, "fine": 0.0, "worse": 0.0, "needed": True}
    waits = "more evidence of errors, slower, tail, differs and 600 s of its least time"
    trial = {"phase": "trial", "version": "2", "stable": "1", "waits_for": waits, "tests": {"errors": test}}
    server.answer = (200, {"model": "toy", **trial})
    assert ctl(server, "roll-out", "--status") == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    assert max(map(len, lines)) <= 80


def test_a_step_to_what_a_worker_holds_is_said_to_start_nothing(
    server: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    place = {"device": "cpu0", "profile": "1c", "start": 0, "size": 1}
    held, new = (
        {"placement": place, "family": "f", "variant": name, "backend": "eager"} for name in ("small", "large")
    )
    steps: list[dict[str, Any]] = [
        {"kind": "spawn", "assignment": one, "placement": None, "routed": [], "stage": 0} for one in (held, new)
    ]
    transition = {"steps": steps, "resident": [held]}
    server.answer = (200, {"dry_run": True, "model": "f", "decision": {"action": "dry run"}, "transition": transition})
    assert ctl(server, "pin", "small", "--model", "f", "--dry-run") == 0
    first, second = (line for line in capsys.readouterr().out.splitlines() if line.startswith("  step"))
    assert first.endswith("(held by a worker there: no process starts)")
    assert "held" not in second


@pytest.mark.parametrize("argv", [["pin", "--off"], ["freeze", "--off"], ["apply"], ["set", "slo_ms=5"]])
def test_what_needs_no_note(server: Any, argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert ctl(server, *argv) == 0
    assert capsys.readouterr().out.split() == ["ok", "yes"]


@pytest.mark.parametrize(
    ("argv", "text"),
    [
        (["freeze", "off"], "'freeze --off' is what you mean"),
        (["freeze", "now"], "it is freeze, or freeze --off"),
        (["set", "slo-ms=5"], "did you mean slo_ms?"),
        (["set", "slo=5"], "did you mean slo_ms?"),
        (["set", "slo_ms"], "slo_ms needs a value: slo_ms=VALUE"),
        (["set", "slo_ms", "mode=off"], "slo_ms needs a value: slo_ms=VALUE"),
        (["set", "acuracy_floor=5"], "did you mean accuracy_floor?"),
        (["base", "small"], "usage: python -m clover ctl base"),
        (["decisions", "--lines", "3"], "usage: python -m clover ctl decisions"),
        (["--port", "9000", "state"], "unrecognised arguments: --port"),
        (["pin", "small", "--for"], "unrecognised arguments: --for (did you mean --force?)"),
        (["guard"], "the following arguments are required: reset"),
    ],
)
def test_mistakes_are_answered_with_what_to_do(argv: list[str], text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(argv, {}) == 2
    assert text in capsys.readouterr().err


def test_a_reader_that_stops_reading_is_no_fault(server: Any) -> None:
    server.answer = (200, {f"key{number}": "x" * 100 for number in range(10_000)})
    command = [
        sys.executable,
        "-m",
        "clover",
        "ctl",
        "--url",
        f"http://127.0.0.1:{server.server_port}",
        "--json",
        "state",
    ]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(30) == 0


def test_readable_and_json(server: Any, capsys: pytest.CaptureFixture[str]) -> None:
    server.answer = (200, [DECISION])
    assert ctl(server, "decisions") == 0
    printed = capsys.readouterr().out
    assert not re.search(r" $", printed, re.MULTILINE)
    text = " ".join(printed.split())
    assert "7 2024-01-31 00:00:00 fashion intensity applied cleaner grid [and]" in text
    assert "applied" in text
    assert ctl(server, "--json", "decisions") == 0
    assert json.loads(capsys.readouterr().out) == [DECISION]
    server.answer = (200, [DECISION | {"count": 100, "last_at": "2024-01-31T00:05:07.000+00:00"}])
    assert ctl(server, "decisions") == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "7 2024-01-31 00:00:00 to 2024-01-31 00:05:07 fashion intensity applied x 100 cleaner" in text
    server.answer = (
        200,
        {
            "mode": "active",
            "frozen": False,
            "families": {"a": {"workers": [{"pid": 1, "p95_ms": 1.23456789}]}},
            "x": None,
        },
    )
    assert ctl(server, "state", "--all") == 0
    text = capsys.readouterr().out
    assert "families.a.workers" in text
    assert "1.23457" in text
    server.answer = (200, [])
    assert ctl(server, "decisions") == 0
    assert "no decisions yet" in capsys.readouterr().out


PLAN = {
    "configuration": [{"variant": "small", "profile": "1c", "count": 2}],
    "routing": {"shares": {"small": 1.0}},
    "prediction": {"p95_ms": 2.5, "accuracy": 88.7, "energy_j_per_row": 0.001, "utilisation": 0.25},
    "reason": "dirty grid",
    "policy": "objective",
    "feasible": True,
}
PLACE = {"device": "cpu0", "profile": "1c", "start": 1, "size": 1}
STEP = {"kind": "spawn", "assignment": {"placement": PLACE, "variant": "small", "backend": "eager"}, "placement": None}


def test_plans_and_state_for_people(server: Any, capsys: pytest.CaptureFixture[str]) -> None:
    outcome = {
        "model": "fashion",
        "decision": {"action": "dry run", "detail": "", "seconds": 0.5},
        "plan": PLAN,
        "transition": {"steps": [STEP]},
    }
    server.answer = (200, outcome)
    assert ctl(server, "plan") == 0
    text = capsys.readouterr().out
    assert "2 x small@1c; rows: small 100.0%" in text
    assert "p95 2.5 ms, accuracy 88.70 %, 1 mJ/row, utilisation 25%" in text
    assert "spawn small (eager) at cpu0:1c@1" in text
    assert "batches" not in text
    tuned = {"shares": {"small": 1.0}, "largest": {"small": 4}, "wait_ms": {"small": 2.5}}
    server.answer = (200, outcome | {"plan": PLAN | {"routing": tuned}})
    assert ctl(server, "plan") == 0
    assert "batches    small takes at most 4 rows, small waits up to 2.5 ms" in capsys.readouterr().out
    server.answer = (200, {"set": "slo_ms: 5", "dry_run": True, "models": {"fashion": outcome}})
    assert ctl(server, "set", "slo_ms=5", "--dry-run") == 0
    assert capsys.readouterr().out.startswith("dry run: nothing changed\nset slo_ms: 5\n")
    server.answer = (200, outcome | {"plan": PLAN | {"feasible": False}})
    assert ctl(server, "apply") == 0
    assert capsys.readouterr().out.startswith("warning: this plan does not meet every target")
    model = {
        "mode": "active",
        "pin": "static:small",
        "deployment": [{"placement": "cpu0:1c@1", "variant": "small", "backend": "eager", "ready": True}],
        "routing": {"shares": {"small": 1.0}, "wait_ms": {"small": 0.25}},
        "plan": PLAN,
        "targets": {
            "slo_ms": 5.0,
            "slo_source": "1.2 x BASE's p95 of 4.17 ms over HTTP at 60 % load, measured",
            "accuracy_floor": 90.0,
            "objective": "paper",
            "lambda": 0.25,
            "lambda_derived": True,
        },
        "observed": {"arrival_rate": 12.0, "carried_j": -2.2e-15, "small": 2e-9},
        "last_decision": {"id": 3, "at": "now", "trigger": "intensity", "action": "kept", "detail": "", "operator": ""},
    }
    intensity = {"g_per_kwh": 305.2, "provider": "synthetic", "label": "synthetic, fresh"}
    server.answer = (
        200,
        {
            "mode": "active",
            "frozen": False,
            "policy": "objective",
            "intensity": intensity,
            "models": {"fashion": model},
            "decisions": {"applied": 1},
        },
    )
    assert ctl(server, "state", "--all") == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "305 gCO2e/kWh from synthetic (synthetic, fresh)" in text
    assert "fashion: mode active, pinned to small" in text
    assert "cpu0:1c@1 small eager yes 100.0%" in text
    assert "arrival_rate 12, carried_j 0, small 2e-09" in text
    assert "batches small waits up to 0.25 ms" in text
    assert "p95 <= 5 ms, accuracy >= 90.00 %, objective paper, weight of carbon (lambda) 0.25 (derived)" in text
    budgeted = {**model, "budget": {"accuracy_target": 90.5}}
    server.answer = (200, {"mode": "active", "policy": "budget", "models": {"fashion": budgeted}})
    assert ctl(server, "state", "--all") == 0
    kept = "p95 <= 5 ms, accuracy on average at least 90.50 %, no plan below 90.00 %, objective"
    assert kept in " ".join(capsys.readouterr().out.split())
    assert "that p95 target is 1.2 x BASE's p95 of 4.17 ms over HTTP" in text
    foretold = {"accuracy_target": 90.5, "forecast": "persistence", "forecast_error_g_per_kwh": 21.4}
    server.answer = (200, {"mode": "active", "policy": "budget", "models": {"fashion": {**model, "budget": foretold}}})
    assert ctl(server, "state") == 0
    off = "its forecast (persistence) was off by 21 g/kWh on average over the last day"
    assert off in " ".join(capsys.readouterr().out.split())


def test_shares_of_rows_are_shown_once_for_each_variant(server: Any, capsys: pytest.CaptureFixture[str]) -> None:
    server.answer = (200, answered())
    assert ctl(server, "state", "--all") == 0
    text = capsys.readouterr().out
    assert text.count("75.0%") == 1, "two workers share them"
    assert text.count("25.0%") == 1


def test_savings_are_shown_with_against_what_and_not_before_anything_was_served(
    server: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    nothing = {"mode": "active", "saved": None}
    words = "saved 41.0 % of the gCO2e of BASE (modelled; xlarge on 1 x 2c, equal load and hardware)"
    saved = {
        "rows": 9,
        "base": {"part": 0.41, "words": words},
        "matched": {"words": "lost 1.0 mg, ..."},
    }
    totals = {"saved": {"base": {"words": "all of them"}}}
    server.answer = (200, {"mode": "active", "models": {"one": {"mode": "active", "saved": saved}, "two": nothing}})
    assert ctl(server, "state", "--all") == 0
    shown = capsys.readouterr().out
    assert f"carbon     lost 1.0 mg, ...\n             {words}\n" in shown
    assert shown.index("lost 1.0 mg") < shown.index("two:")
    assert "saved" not in shown[shown.index("two:") :]
    assert "all models" not in shown
    server.answer[1]["totals"] = totals
    assert ctl(server, "state", "--all") == 0
    assert "all models\n  carbon     all of them" in capsys.readouterr().out
    assert ctl(server, "state", "--all", "--model", "one") == 0
    assert "all of them" not in capsys.readouterr().out, "of all models, and only one is shown"


def test_devices_and_capacity_for_people(server: Any, capsys: pytest.CaptureFixture[str]) -> None:
    gpu = {
        "device": "gpu0",
        "kind": "mig",
        "label": "NVIDIA A100-SXM4-40GB, emulated",
        "family": "fashion",
        "lost": False,
        "layout": [{"variant": "large", "profile": "1g.5gb"}] * 2 + [{"variant": "tiny", "profile": "4g.20gb"}],
        "quarantined": [{"placement": "gpu0:1g.5gb@6", "reason": "in use"}],
        "foreign": ["gpu0:1g.5gb@5"],
    }
    gone = {"device": "gpu1", "kind": "mig", "label": "NVIDIA A100-SXM4-40GB, emulated", "lost": True}
    server.answer = (200, {"mode": "active", "policy": "objective", "models": {}, "devices": [gpu, gone]})
    assert ctl(server, "state", "--all") == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "gpu0: NVIDIA A100-SXM4-40GB, emulated; fashion's; 2 x large@1g.5gb + 1 x tiny@4g.20gb" in text
    assert "gpu0:1g.5gb@6 quarantined: in use; not ours: gpu0:1g.5gb@5" in text
    assert "gpu1: NVIDIA A100-SXM4-40GB, emulated; LOST" in text
    transition = {"steps": [STEP], "lowest_capacity": 5.0, "capacity_floor": 8.0, "loses_s": 2.5, "holds": False}
    outcome = {"model": "fashion", "decision": {"action": "dry run"}, "plan": PLAN, "transition": transition}
    server.answer = (200, outcome)
    assert ctl(server, "plan") == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "at least 5.0 rows/s on the way; floor 8.0 rows/s, below it for about 2.5 s" in text
    server.answer = (200, outcome | {"transition": transition | {"lowest_capacity": 9.0, "holds": True}})
    assert ctl(server, "plan") == 0
    assert "below it" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("status", "answer", "code", "text"),
    [
        (409, {"error": "no plan satisfies this"}, 1, "no plan satisfies this (409)"),
        (403, {"error": "a token is needed"}, 1, "a token is needed (403)"),
        (500, {"error": "failed"}, 3, "failed (500)"),
        (404, [], 1, "the server refused (404)"),
        (200, b"<html>", 3, "is it Clover?"),
    ],
)
def test_refusals(server: Any, status: int, answer: Any, code: int, text: str, capsys: Any) -> None:
    server.answer = (status, answer)
    assert ctl(server, "base") == code
    assert text in capsys.readouterr().err


@pytest.mark.parametrize(
    "argv",
    [
        ["pin"],
        ["pin", "small", "--off"],
        ["base", "--off"],
        ["pin", "small", "large"],
        ["plan", "mode=off"],
        ["apply", "small"],
        ["set", "port=1"],
        ["set", "slo_ms=fast"],
        ["sett", "slo_ms=1"],
        [],
        ["--url", "ftp://x", "state"],
        ["--token", "file:/nowhere", "state"],
    ],
)
def test_what_cannot_be_read_exits_with_two(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(argv, {}) == 2
    assert capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["pin", "small", "--dry-run"], "the server to work out the plan: nothing is changed"),
        (["plan"], "the server to work out the plan: nothing is changed"),
        (["pin", "small"], "the server to work out the plan and to start its workers"),
        (["state"], "an answer"),
    ],
)
def test_what_is_waited_for_is_named(server: Any, argv: list[str], words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    said = []

    def progress(command: str, what: str) -> AbstractContextManager[None]:
        said.append((command, what))
        return nullcontext()

    monkeypatch.setattr("clover.cli.ctl.command.Progress", progress)
    ctl(server, *argv)
    assert said == [("ctl", f"waiting for {words}")]


def test_nobody_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--url", "http://127.0.0.1:1", "state"], {}) == 3
    assert main(["--url", f"unix:{tmp_path / 'none'}", "state"], {}) == 3
    assert "is the server running" in capsys.readouterr().err


def test_over_the_control_socket(tmp_path: Path) -> None:
    path = tmp_path / "control"
    made = UnixServer(str(path), Handler)
    made.seen = []
    made.answer = (200, {})
    thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        assert main(["--url", f"unix:{path}", "freeze"], {}) == 0
    finally:
        made.shutdown()
        thread.join()
        made.server_close()
    assert made.seen == [("POST", "/v2/clover/freeze", {"on": True}, None)]


@pytest.fixture
def own_certificate(server: Any, tmp_path: Path) -> Path:
    """The certificate of `server`, which speaks TLS now and which nobody vouches for."""
    certificate, key = make_certificate(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    server.handle_error = lambda *_: None  # of a client that does not trust it
    return certificate


def test_a_certificate_of_its_own_has_to_be_named(
    server: Any, own_certificate: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url = f"https://127.0.0.1:{server.server_address[1]}"
    assert main(["--url", url, "freeze"], {}) == 3
    error = capsys.readouterr().err
    assert "self-signed certificate" in error
    assert "--cacert FILE" in error
    assert "is the server running" not in error
    assert main(["--url", url, "--cacert", str(own_certificate), "freeze"], {}) == 0
    assert main(["--url", url, "--cacert", "nowhere.pem", "freeze"], {}) == 2
    assert "cannot read the certificate nowhere.pem: No such file or directory" in capsys.readouterr().err


def test_infer_takes_a_certificate_too(server: Any, own_certificate: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("httpx", reason="the client needs the extra `client`")
    url = f"https://127.0.0.1:{server.server_address[1]}"
    server.answer = (404, {"error": "no such model"})
    assert infer.main(["m", "[1]", "--url", url, "--timeout", "2"], {}) == 1
    assert "--cacert FILE" in capsys.readouterr().err
    assert infer.main(["m", "[1]", "--url", url, "--cacert", str(own_certificate)], {}) == 1
    assert "no such model" in capsys.readouterr().err
    (own_certificate.parent / "text.pem").write_text("no certificate")
    assert infer.main(["m", "[1]", "--url", url, "--cacert", str(own_certificate.parent / "text.pem")], {}) == 1
    assert "text.pem: it holds no certificate in PEM form" in capsys.readouterr().err


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"], {}) == 0
    assert "decisions" in capsys.readouterr().out


def test_tenants_are_a_table_over_all_models(server: Any, capsys: pytest.CaptureFixture[str]) -> None:
    acme = {"requests": {"200": 5, "429": 2}, "rows": {"small": 9}, "limited": 1, "active_j": 2.0, "active_g": 0.5}
    acme |= {"method": "measured", "grams_method": "modelled"}
    limits = {"rate": 5.0, "burst": 10, "priority": 4, "min_accuracy": 90.0, "timeout_ms": 0.0, "may_control": False}
    models = {"a": {"tenants": {"": {**acme, "limited": 0}, "acme": acme}}, "b": {"tenants": {"acme": acme}}}
    free = {**limits, "rate": None, "burst": None, "min_accuracy": 0.0}
    server.answer = (200, {"totals": {"models": models, "tenants": {"acme": limits, "free": free}}})
    assert ctl(server, "tenants") == 0
    limited, used, words = (part.splitlines() for part in capsys.readouterr().out.split("\n\n"))
    assert [" ".join(line.split()) for line in limited] == [
        "tenant priority rows/s burst accuracy %",
        "acme 4 5 10 90",
        "free 4 no limit",
    ]
    assert [" ".join(line.split()) for line in used] == [
        "tenant requests refused over rate rows active J g CO2e",
        "(none) 7 2 0 9 2 0.5",
        "acme 14 4 2 18 4 1",
        "free 0 0 0 0 0 0",
    ]
    assert "Joules are measured, grams modelled." in " ".join(words)
    server.answer = (200, {"totals": {"models": models}})
    assert ctl(server, "tenants") == 0
    assert capsys.readouterr().out == "no tenants are configured: the server's file has no [[tenant]]\n"


def test_tenants_fit_80_columns_and_say_which_grams_are_billed(
    server: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = {"requests": {"200": 12345678, "429": 87654321}, "rows": {"small": 123456789}, "limited": 87654321}
    sent |= {"active_j": 1.2345e9, "active_g": 1.2345e5, "method": "measured+modelled", "grams_method": "modelled"}
    limits = {"rate": 12345.5, "burst": 123456, "priority": 100, "min_accuracy": 92.98, "timeout_ms": 12345.5}
    totals = {"models": {"a": {"tenants": {"acme-north": sent, "": sent}}}}
    server.answer = (200, {"totals": {**totals, "tenants": {"acme-north": limits}}})
    monkeypatch.setenv("COLUMNS", "80")
    assert ctl(server, "tenants") == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    assert len([line for line in out.splitlines() if "acme-north" in line]) == 2, "no cell is folded"
    assert "To bill, take the grams of" in " ".join(out.split())
    assert "report --by tenant" in out


def test_a_guard_that_acts_stands_in_the_state(server: Any, capsys: pytest.CaptureFixture[str]) -> None:
    guard = {
        "state": "aside",
        "acts": True,
        "watches": True,
        "why": "answers of small agree less",
        "missing": "",
        "audits": {"share": 0.02, "answered": 40, "free": 2},
        "feedback": {
            "estimate": {"accuracy": 91.0, "low": 88.0, "high": 93.5, "rows": 200},
            "largest_share": 0.5,
        },
    }
    server.answer = (200, {"mode": "active", "policy": "objective", "models": {"m": {"guard": guard}}})
    assert ctl(server, "state", "--all") == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "guard ASIDE: answers of small agree less; 2.00% of rows audited, 42 so far" in text
    assert "labels 91.00 % right (88.00 .. 93.50) of 200 rows by feedback, 50% from one client" in text
    server.answer = (200, {"models": {"m": {"guard": {"watches": False, "missing": "an old profile"}}}})
    assert ctl(server, "state", "--all") == 0
    assert "watches nothing: an old profile" in capsys.readouterr().out


def answered(**changes: Any) -> dict[str, Any]:
    """A server's state: one family that is well, but for `changes` of it."""
    model = {
        "mode": "active",
        "pin": None,
        "frozen": False,
        "deployment": [
            {
                "placement": "cpu0:1c@0",
                "device": "cpu0",
                "profile": "1c",
                "variant": "large",
                "backend": "eager",
                "ready": True,
            },
            {
                "placement": "cpu0:1c@1",
                "device": "cpu0",
                "profile": "1c",
                "variant": "large",
                "backend": "eager",
                "ready": True,
            },
            {
                "placement": "cpu0:1c@2",
                "device": "cpu0",
                "profile": "1c",
                "variant": "small",
                "backend": "eager",
                "ready": True,
            },
        ],
        "routing": {"shares": {"large": 0.75, "small": 0.25}},
        "plan": PLAN,
        "targets": {"slo_ms": 31.5, "accuracy_floor": 92.26, "objective": "paper", "lambda": 0.1},
        "observed": {
            "arrival_rate": 200.0,
            "queue_rows": 3.0,
            "rows": 12000.0,
            "accuracy_served": 92.68,
            "p95_ms": 1.54,
        },
        "saved": {"base": {"words": "saved 41.0 % of the gCO2e of BASE (modelled; xlarge on 1 x 3c)"}, "matched": None},
        "guard": {"state": "ok", "why": ""},
        "last_decision": {"id": 3, "at": "now", "trigger": "intensity", "action": "kept", "detail": ""},
    }
    return {
        "mode": "active",
        "frozen": False,
        "policy": "objective",
        "intensity": {
            "g_per_kwh": 305.2,
            "provider": "synthetic",
            "label": "synthetic, fresh",
            "age_s": 130.0,
            "state": "fresh",
        },
        "devices": [{"device": "cpu0", "label": "3 cores", "lost": False, "quarantined": []}],
        "models": {"fashion": model | changes},
        "totals": {
            "pue": 1.5,
            "models": {"fashion": {"state": "READY", "energy_j": 121.8, "carbon_g": 0.01523, "rows": {"large": 9000}}},
        },
    }


@pytest.mark.parametrize("columns", ["80", "140"])
def test_no_line_ends_in_blanks(
    columns: str, server: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    long = DECISION | {"id": 12, "detail": "a reason that is longer than the other"}
    for answer, words in (([DECISION, long], ["decisions"]), (answered(), ["state"]), (answered(), ["state", "--all"])):
        server.answer = (200, answer)
        assert ctl(server, *words) == 0
        printed = capsys.readouterr().out
        assert printed
        assert not re.search(r"[ \t]$", printed, re.MULTILINE), printed


def test_the_state_in_a_dozen_lines(
    server: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    server.answer = (200, answered())
    assert ctl(server, "state") == 0
    text = capsys.readouterr().out
    assert len(text.splitlines()) <= 13
    assert max(map(len, text.splitlines())) <= 80
    for line in (
        "healthy      every model answers and meets its targets",
        "grid         305 gCO2e/kWh from synthetic (synthetic, fresh), 2 min old",
        "control      policy objective, mode active",
        "fashion",
        "  runs       2 x large on 1 core of cpu0 (75% of rows), small on 1 core of cpu0 (25% of rows)",
        "  demand     200 rows/s arrive, 3 waiting; 12,000 rows so far",
        "  latency    p95 1.54 ms of 31.5 ms: SLO held",
        "  accuracy   92.68 % expected of what served (by profile), floor 92.26 %: held",
        "  carbon     15.2 mg of CO2e and 121.8 J so far, idle power of its workers included",
        "  saved      41.0 % of the gCO2e of BASE (modelled; xlarge on 1 x 3c)",
    ):
        assert " ".join(line.split()) in " ".join(text.split())
    assert ctl(server, "state", "--json") == 0
    assert json.loads(capsys.readouterr().out) == answered()


def test_a_worker_with_several_variants_is_one_in_brief(server: Any, capsys: pytest.CaptureFixture[str]) -> None:
    there = [
        {"placement": f"cpu0:1c@{core}", "device": "cpu0", "profile": "1c", "variant": variant, "ready": True}
        for core in range(2)
        for variant in ("large", "small")
    ]
    server.answer = (200, answered(deployment=there))
    assert ctl(server, "state") == 0
    brief = " ".join(capsys.readouterr().out.split())
    assert "runs 2 x large/small on 1 core of cpu0 (large 75%, small 25% of rows)" in brief


def test_a_worker_with_several_variants_is_one_among_all(server: Any, capsys: pytest.CaptureFixture[str]) -> None:
    there = [
        {"placement": f"gpu0:3g@{start}", "device": "gpu0", "profile": "3g.20gb", "variant": variant, "ready": True}
        for start in (0, 4)
        for variant in ("large", "small")
    ]
    answer = answered(deployment=there)
    answer["devices"] = [{"device": "gpu0", "kind": "mig", "label": "an A100", "layout": there}]
    server.answer = (200, answer)
    assert ctl(server, "state", "--all") == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "gpu0: an A100; 2 x large/small@3g.20gb" in text
    assert text.count("large/small") == 3
    assert text.count("large 75.0%, small 25.0%") == 1


def test_what_does_not_fit_a_line_goes_on_under_its_text(
    server: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    server.answer = (200, answered(plan={**PLAN, "reason": "it serves all that comes, and " * 6}))
    assert ctl(server, "state", "--all") == 0
    lines = capsys.readouterr().out.splitlines()
    first = next(number for number, line in enumerate(lines) if line.startswith("  plan       it serves"))
    assert max(map(len, lines[first : first + 3])) <= 80
    assert all(line.startswith(" " * 13) and line[13] != " " for line in lines[first + 1 : first + 3])


def test_a_profile_that_is_corrected_stands_in_the_state(server: Any, capsys: pytest.CaptureFixture[str]) -> None:
    factors = [
        {"variant": "large", "profile": "1c", "time": 1.52, "energy": 0.9},
        {"variant": "small", "profile": "1c", "time": 1.01, "energy": 1.0},
        {"variant": "small", "profile": "2c", "time": 2.0, "energy": 2.0},
    ]
    words = "large@1c: time x 1.52, energy x 0.90; small@2c: time x 2.00, energy x 2.00"
    correction = {"words": words, "advice": "measure anew: --profile force", "changed": 3, "factors": factors}
    server.answer = (200, answered(profile_correction=correction))
    assert ctl(server, "state") == 0
    brief = " ".join(capsys.readouterr().out.split())
    assert "corrected by what is measured: large on 1c: 1.52 x the time, 0.90 x the energy; measure anew" in brief
    assert ctl(server, "state", "--all") == 0
    whole = " ".join(capsys.readouterr().out.split())
    assert words in whole
    assert "measure anew: --profile force" in whole


@pytest.mark.parametrize(("ms", "told"), [(0.85, True), (38.95, False)])
def test_what_http_adds_otherwise_than_profiled_stands_in_the_state(
    server: Any, capsys: pytest.CaptureFixture[str], ms: float, told: bool
) -> None:
    correction = {"words": "", "advice": "", "changed": 1, "factors": [], "front": {"ms": ms, "profile_ms": 39.0}}
    server.answer = (200, answered(profile_correction=correction))
    assert ctl(server, "state") == 0
    brief = " ".join(capsys.readouterr().out.split())
    assert ("corrected by what is measured: HTTP adds 0.85 ms to p95, not 39.00" in brief) == told


@pytest.mark.parametrize(
    ("short", "shown"),
    [
        (("saved 2 g of BASE", "emitted 1 g more"), ("saved      2 g of BASE", "emitted 1 g more")),
        (("emitted 1 g more", "saved 2 g"), ("compared   emitted 1 g more", "saved 2 g")),
        (("too early to say", "too early to say"), ("compared   too early to say", "modelled")),
    ],
)
def test_a_loss_is_not_headed_as_saved_and_what_is_too_early_is_said_once(
    server: Any, capsys: pytest.CaptureFixture[str], short: tuple[str, str], shown: tuple[str, str]
) -> None:
    saved: dict[str, Any] = {"known": "modelled"}
    saved |= {kind: {"short": text, "words": ""} for kind, text in zip(("matched", "base"), short, strict=True)}
    server.answer = (200, answered(saved=saved))
    assert ctl(server, "state") == 0
    lines = capsys.readouterr().out.splitlines()
    at = lines.index(f"  {shown[0]}")
    assert lines[at + 1].strip() == shown[1]


def test_the_state_in_brief_has_the_idle_part_of_the_energy_and_says_when_there_is_none_yet(
    server: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    for idle, said in (
        ({"words": "idle is 90 % of this machine's energy so far (modelled)"}, "90 % of this machine's energy so far"),
        (None, "no energy was counted yet; its idle part is shown here once"),
    ):
        server.answer = (200, answered() | {"idle": idle})
        assert ctl(server, "state") == 0
        assert f"idle         {said}" in capsys.readouterr().out


def test_what_could_not_be_planned_is_a_warning_of_a_set_that_is_in_force(
    server: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    server.answer = (200, {"set": "slo_ms: 200.0", "models": {}, "warnings": ["toy: it is in force, but why"]})
    assert ctl(server, "set", "slo_ms=200") == 0
    assert capsys.readouterr().out.splitlines() == ["set slo_ms: 200.0", "warning: toy: it is in force, but why"]


def test_the_state_in_brief_compares_nothing_where_there_is_too_little_load_to_save_on(
    server: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    idle = {"light": True, "words": "too little load to save on: idle is 90 % of the energy, one core would do"}
    server.answer = (200, answered() | {"idle": idle})
    assert ctl(server, "state") == 0
    shown = capsys.readouterr().out
    assert "idle         too little load to save on: idle is 90 % of the energy, one core would do" in shown
    assert "of the gCO2e of BASE" not in shown
    assert "ctl state --all`, as there is too little load to save on" in shown


def test_the_state_in_brief_says_how_the_slo_was_held_and_why_it_cannot_be(
    server: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    state = copy.deepcopy(answered())
    slo = {"windows": 360, "words": "SLO held 99.7 % of the last hour (359 of 360 windows of 10 s)", "slower": 1.0}
    state["models"]["fashion"]["slo"] = slo | {"late": False, "alarm": None}
    server.answer = (200, state)
    assert ctl(server, "state") == 0
    words = " ".join(capsys.readouterr().out.split())
    assert "p95 1.54 ms of 31.5 ms: SLO held; 99.7 % of the last hour (359 of 360 windows of 10 s)" in words
    assert "as slow as profiled" not in words
    # Of few answers a slow one shows no miss: the server is healthy, and the line below does not say otherwise.
    state["models"]["fashion"]["observed"] |= {"p95_ms": 40.0}
    assert ctl(server, "state") == 0
    words = " ".join(capsys.readouterr().out.split())
    open_yet = "too few answers to tell whether fashion meets its SLO (p95 40 ms of 31.5 ms)"
    assert words.startswith(f"healthy every model is ready; {open_yet}")
    assert "p95 40 ms of 31.5 ms: SLO perhaps missed, by few answers; 99.7 %" in words
    state["models"]["fashion"]["slo"] |= {"late": True}
    assert ctl(server, "state") == 0
    words = " ".join(capsys.readouterr().out.split())
    assert words.startswith("UNHEALTHY fashion misses its SLO: p95 40 ms of 31.5 ms")
    assert "p95 40 ms of 31.5 ms: SLO MISSED; 99.7 %" in words
    state["models"]["fashion"]["observed"] |= {"p95_ms": 1.54}
    # A plan with more room than the profile asks for says that it misses the SLO, which the p95 does not.
    state["models"]["fashion"]["plan"] |= {"feasible": False}
    slo |= {"late": False, "slower": 1.5, "alarm": None}
    state["models"]["fashion"]["slo"] = slo
    assert ctl(server, "state") == 0
    words = " ".join(capsys.readouterr().out.split())
    assert words.startswith("healthy")
    assert "plans take services to be 1.50 x as slow as profiled, since the SLO was missed" in words
    slo |= {"late": True, "alarm": "this SLO cannot be met here: p95 <= 31.5 ms at 200 rows/s"}
    assert ctl(server, "state") == 0
    words = " ".join(capsys.readouterr().out.split())
    assert words.startswith("UNHEALTHY fashion misses its SLO: this SLO cannot be met here: p95 <= 31.5 ms")
    assert "no plan that meets" not in words
    assert ctl(server, "state", "--all") == 0
    words = " ".join(capsys.readouterr().out.split())
    assert "slo SLO held 99.7 % of the last hour" in words
    assert "alarm this SLO cannot be met here" in words


def test_the_state_in_brief_has_the_grams_a_row(server: Any, capsys: pytest.CaptureFixture[str]) -> None:
    state = answered()
    state["totals"]["sci"] = {"words": "5.4 mgCO2e per 1,000 rows of the server"}
    server.answer = (200, state)
    assert ctl(server, "state") == 0
    assert "sci          5.4 mgCO2e per 1,000 rows of the server\n" in capsys.readouterr().out


def kept(**changed: Any) -> dict[str, Any]:
    ledger = {
        "path": "/state/ledger/a.db",
        "state": "writing",
        "reason": "",
        "trouble": "",
        "since_s": 1_790_035_200.0,
        "carbon_g": 41.2,
        "energy_j": 1.5e6,
        "dropped_rows": 0,
        "set_aside": "",
        **changed,
    }
    return {"totals": answered()["totals"] | {"ledger": ledger}}


def test_the_state_in_brief_has_what_the_ledger_has_of_all_runs(
    server: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    server.answer = (200, answered() | kept())
    assert ctl(server, "state") == 0
    words = " ".join(capsys.readouterr().out.split())
    assert words.startswith("healthy")
    assert "ledger 41.2 g of CO2e and 0.417 kWh since 2026-09-22, in /state/ledger/a.db" in words
    server.answer = (200, answered() | kept(since_s=None))
    assert ctl(server, "state") == 0
    assert "ledger nothing is in /state/ledger/a.db yet" in " ".join(capsys.readouterr().out.split())


def test_a_ledger_that_is_not_written_is_trouble(server: Any, capsys: pytest.CaptureFixture[str]) -> None:
    broken = {"state": "failing", "reason": "full", "trouble": "database or disk is full"}
    server.answer = (200, answered() | kept(**broken, dropped_rows=7, set_aside="a.db.corrupt-1"))
    assert ctl(server, "state") == 0
    words = " ".join(capsys.readouterr().out.split())
    assert words.startswith("UNHEALTHY the ledger is not written (full: database or disk is full)")
    assert "7 rows of it are lost; a damaged one is set aside as a.db.corrupt-1" in words
    server.answer = (200, answered() | kept(trouble="was removed or replaced"))
    assert ctl(server, "state") == 0
    assert "UNHEALTHY the ledger was removed or replaced" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"observed": {"p95_ms": 40.0}}, "fashion misses its SLO: p95 40 ms of 31.5 ms"),
        ({"observed": {"accuracy_served": 90.0}}, "fashion is below its accuracy floor: 90.00 % of 92.26 %"),
        ({"deployment": []}, "fashion has no worker"),
        (
            {"deployment": [{"placement": "cpu0:1c@0", "variant": "small", "ready": False}]},
            "fashion has 1 of 1 workers that are not ready",
        ),
        (
            {"deployment": [{"placement": "a", "variant": name, "ready": False} for name in ("small", "large")]},
            "fashion has 1 of 1 workers that are not ready",
        ),
        (
            {"deployment": [{"placement": "a", "variant": one, "ready": one == "small"} for one in ("small", "large")]},
            "fashion has workers on which large is not ready",
        ),
        ({"plan": PLAN | {"feasible": False}, "pin": "base"}, "fashion is pinned to BASE: not every target is met"),
        ({"plan": PLAN | {"feasible": False}}, "fashion has no plan that meets every target"),
        (
            {"guard": {"state": "aside", "why": "answers agree less"}},
            "fashion drifts from its profile: answers agree less",
        ),
        (
            {"last_decision": {"action": "failed", "detail": "a worker died"}},
            "fashion could not be changed: failed, a worker died",
        ),
    ],
)
def test_a_state_that_is_not_well_says_why_first(
    server: Any, change: dict[str, Any], why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    server.answer = (200, answered(**change))
    assert ctl(server, "state") == 0
    assert capsys.readouterr().out.splitlines()[0] == f"UNHEALTHY    {why}"


def test_what_was_not_answered_meets_no_target(server: Any, capsys: pytest.CaptureFixture[str]) -> None:
    state = copy.deepcopy(answered())
    del state["models"]["fashion"]["observed"]["p95_ms"]
    for rows, said in (
        ({}, "every model is ready; nothing was answered yet, so no target is judged"),
        ({"small": 200}, "every model is ready; nothing was answered lately, so no target is judged"),
    ):
        state["totals"]["models"]["fashion"]["rows"] = rows
        server.answer = (200, state)
        assert ctl(server, "state") == 0
        assert capsys.readouterr().out.splitlines()[0] == f"healthy      {said}"
    state["models"] = {"busy": answered()["models"]["fashion"], **state["models"]}
    assert verdict(state) == "every model is ready, and busy meets its targets"
    del state["models"]["fashion"]["targets"], state["models"]["busy"]
    assert verdict(state) == "every model is ready"


def test_models_without_a_profile_have_no_targets_that_they_could_meet() -> None:
    state = copy.deepcopy(answered())
    model, totals = state["models"].pop("fashion"), state["totals"]["models"]
    totals["fashion"]["state"] = "READY"
    assert verdict(state) == "every model is ready; fashion has no profile, so no targets to meet"
    state["models"] = dict.fromkeys(("a", "b", "c"), model)
    met = "every model is ready, and a, b and c meet their targets"
    assert verdict(state) == f"{met}; fashion has no profile, so no targets to meet"
    totals["other"] = {"state": "READY"}
    assert verdict(state) == f"{met}; fashion and other have no profile, so no targets to meet"
    totals["fashion"]["state"] = totals["other"]["state"] = "UNAVAILABLE"
    assert verdict(state) == "every model answers and meets its targets"
    state["models"] = {}
    assert list(troubles(state)) == ["no model is loaded, so that every request is refused"]


def test_a_few_hard_rows_make_no_server_unhealthy(server: Any, capsys: pytest.CaptureFixture[str]) -> None:
    state = answered(observed={"accuracy_served": 82.0})
    for rows, word in ((99, "perhaps missed, by few answers"), (100, "MISSED")):
        state["totals"]["models"]["fashion"]["rows"] = {"small": rows - 40, "large": 40}
        server.answer = (200, state)
        assert ctl(server, "state") == 0
        words = " ".join(capsys.readouterr().out.split())
        open_yet = "too few answers to tell whether fashion meets its accuracy floor (82.00 % of 92.26 %)"
        healthy = f"healthy every model is ready; {open_yet}"
        assert words.startswith(healthy if rows < 100 else "UNHEALTHY fashion is below its accuracy floor")
        assert f"floor 92.26 %: {word}" in words


def test_the_same_hard_row_again_and_again_makes_no_server_unhealthy(
    server: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    text = "99% of the latest rows are the same input again and again: looks like a probe"
    seen = {"rows": 400.0, "accuracy_served": 77.58, "repeated_rows": 399.0, "repeated_surplus": 400 * (77.58 - 92.88)}
    state = answered(observed=seen, guard={"pattern": {"kind": "probe", "text": text}})
    server.answer = (200, state)
    assert ctl(server, "state") == 0
    words = " ".join(capsys.readouterr().out.split())
    assert words.startswith("healthy ")
    apart = "92.88 % if a repeated input counts as any other"
    assert f"77.58 % expected of what served (by profile); {apart}, floor 92.26 %: held" in words
    assert f"inputs {text}" in words
    state["models"]["fashion"]["observed"]["repeated_surplus"] = 0.0
    server.answer = (200, state)
    assert ctl(server, "state") == 0
    assert capsys.readouterr().out.startswith("UNHEALTHY    fashion is below its accuracy floor: 77.58 % of 92.26 %")


def test_requests_that_were_refused_or_failed_are_counted_in_brief(
    server: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    state = answered(observed={"arrival_rate": 26_712.4, "rows": 5774.0})
    state["totals"]["models"]["fashion"]["requests"] = {"200": 1649, "400": 7, "429": 7836, "503": 2}
    server.answer = (200, state)
    assert ctl(server, "state") == 0
    words = " ".join(capsys.readouterr().out.split())
    assert "26,712 rows/s arrive; 5,774 rows so far; of the requests 7,836 refused (429), 2 failed (503)" in words


def test_an_accuracy_of_a_part_of_the_rows_is_said_to_be(server: Any, capsys: pytest.CaptureFixture[str]) -> None:
    state = answered()
    state["models"]["fashion"]["targets"]["accuracy_cut_short"] = "large by 900 of 5,000 rows"
    server.answer = (200, state)
    assert ctl(server, "state") == 0
    words = " ".join(capsys.readouterr().out.split())
    assert "counted it on a part of the evaluation set, as time ran out: large by 900 of 5,000 rows" in words


def test_a_token_file_that_cannot_be_read_is_named(
    server: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = tmp_path / "operator.token"
    assert ctl(server, "state", "--token", f"file:{missing}") == 2
    said = f"clover ctl: --token: cannot read the file {missing}: No such file or directory\n"
    assert capsys.readouterr().err == said


def test_the_grid_and_devices_can_be_what_is_wrong(server: Any, capsys: pytest.CaptureFixture[str]) -> None:
    found = answered(frozen=True, pin="static:small")
    found["intensity"] |= {"state": "configured", "trouble": "trace:day has no value"}
    found["devices"][0]["lost"] = True
    server.answer = (200, found)
    assert ctl(server, "state") == 0
    text = " ".join(capsys.readouterr().out.split())
    resort = "the value of last resort (carbon.configured_g_per_kwh): all sources fail"
    assert f"UNHEALTHY the intensity of the grid is {resort} " in text
    assert "(trace:day has no value); cpu0" in text
    assert "cpu0 is lost" in text
    assert "fashion pinned to small, frozen: nothing is planned" in text
    damaged = "trace:day changed and cannot be used, so what it held before stays in force: line 3"
    found = answered()
    found["intensity"] |= {"state": "fresh", "trouble": damaged}
    server.answer = (200, found)
    assert ctl(server, "state") == 0
    assert capsys.readouterr().out.startswith(f"UNHEALTHY    {damaged}")
    assert ctl(server, "state", "--all") == 0
    assert f"; {damaged}" in " ".join(capsys.readouterr().out.split())
    server.answer = (200, {"mode": "active", "policy": "objective", "intensity": None, "models": {}})
    assert ctl(server, "state") == 0
    begun = capsys.readouterr().out
    assert begun.startswith("starting     no model answers yet: they are measured")
    assert "the intensity of the grid is not known" in " ".join(begun.split())  # over two lines
