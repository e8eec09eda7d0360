"""The command line: help, refusals with exit codes, checks, reload; nothing here starts a worker."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import logging
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest

from clover import families, settings
from clover.__main__ import COMMANDS, FAMILY
from clover.__main__ import main as dispatch
from clover.carbon import build, caveat, describe
from clover.carbon.synthetic import StaticSource, SyntheticSource
from clover.config import CarbonConfig, LedgerConfig, LogConfig, ServerConfig
from clover.devices.cpu import CpuDevice
from clover.errors import BadRequest, ConfigError
from clover.grants import Grants
from clover.http.audit import Operators
from clover.profiles import ProfileStore
from clover.profiling.measurement import INFLATED
from clover.profiling.stored import key_of
from clover.serve import banner
from clover.serve.command import OPTIONS, main, with_ledger
from clover.serve.reload import Reload, differences
from clover.server import Server
from clover.server.life import Life
from clover.telemetry import logs
from clover.telemetry.ledger.writing import LedgerStatus
from clover.types import AccuracyMeasurement, Assignment, BasePoint, FamilyProfile, Placement, Reading
from tests.support.family_folder import fixture
from tests.support.profiles_fixture import profile

ROOT = Path(__file__).resolve().parents[3]
TOY = str(ROOT / "tests" / "families" / "toy")


def run(*argv: str, environ: dict[str, str] | None = None) -> int:
    return main(list(argv), {} if environ is None else environ)


# --- exit codes ---------------------------------------------------------------------------------------------------


def test_help_is_grouped_and_complete(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--help") == 0
    short = capsys.readouterr().out
    assert len(short.splitlines()) <= 92, "two screens"
    assert "--port" in short
    assert "--limit-body-bytes" not in short
    assert run("--help", "all") == 0
    text = capsys.readouterr().out
    for head in ("Options", "Listen", "Carbon", "Controller", "Workers", "Limits"):
        assert f"\n{head}" in text
    assert "--check-config" in text
    assert "--slo-ms" in text
    assert max(map(len, text.splitlines())) <= 120


def test_print_config_reads_back(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert run(TOY, "--print-config", "--port", "0", environ={"CLOVER_TOKEN": "hush-hush"}) == 0
    text = capsys.readouterr().out
    assert "hush" not in text
    assert tomllib.loads(text)["listen"]["port"] == 0
    assert "# --port" in text
    assert "# env CLOVER_TOKEN" in text


def test_check_config_says_what_it_found(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(TOY, "--check-config") == 0
    assert "the configuration is good: toy on http://127.0.0.1:8080" in capsys.readouterr().out


def test_what_kubernetes_sets_for_a_service_is_named_once(capsys: pytest.CaptureFixture[str]) -> None:
    links = {"CLOVER_PORT": "tcp://10.0.0.1:8080", "CLOVER_SERVICE_HOST": "10.0.0.1", "CLOVER_PORT_80_TCP_PORT": "80"}
    assert run(TOY, "--check-config", environ=links) == 0
    captured = capsys.readouterr()
    assert "on http://127.0.0.1:8080" in captured.out
    assert captured.err.count("CLOVER_PORT, CLOVER_PORT_80_TCP_PORT, CLOVER_SERVICE_HOST\n") == 1
    assert run(TOY, "--check-config") == 0
    assert "CLOVER" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "text"),
    [
        (["--check-confg"], "did you mean --check-config?"),
        (["nofamily", "--check-config"], "no family 'nofamily'"),
        ([TOY, "--variant", "third", "--check-config"], "it has half, full"),
        ([TOY, "--carbon", "trace:/nowhere.csv", "--check-config"], "/nowhere.csv"),
        ([TOY, "--carbon", "syntetic", "--check-config"], "did you mean synthetic?"),
        ([TOY, "--policy", "magic", "--check-config"], "unknown policy 'magic': objective, "),
        ([TOY, "--policy", "objectiv", "--check-config"], "unknown policy 'objectiv' (did you mean objective?)"),
        ([TOY, "--policy", "budgt:online", "--check-config"], "(did you mean budget:online?)"),
        ([TOY, "--backends", "eager,tpu", "--check-config"], "unknown backend"),
        ([TOY, "--host", "0.0.0.0", "--check-config"], "--insecure"),
        ([TOY, "--device", "nvdia", "--check-config"], "did you mean nvidia?"),
        ([TOY, "--device", "emulated:a100-41gb:1", "--check-config"], "there is no table of a GPU 'a100-41gb'"),
        ([TOY, "--device", "emulated:a100-40gb:1", "--pace", __file__, "--check-config"], "test_serve.py"),
        ([TOY, "--cores", "99999", "--check-config"], "cores 99999 are not among those this process may use"),
    ],
)
def test_what_cannot_be_used_exits_with_two(argv: list[str], text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*argv) == 2
    captured = capsys.readouterr()
    assert text in captured.err
    assert captured.out == ""


def test_check_config_looks_for_loaders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = shutil.copytree(TOY, tmp_path / "toy")
    declaration = folder / "family.toml"
    declaration.write_text(declaration.read_text(encoding="utf-8").replace("model:", "modle:"), encoding="utf-8")
    assert run(str(folder), "--check-config") == 2
    assert "no module modle in the family's folder, nor to import" in capsys.readouterr().err


def altered_toy(folder: Path, *changes: tuple[str, str]) -> str:
    """A copy of the toy family with other text in its declaration."""
    made = shutil.copytree(TOY, folder)
    text = (made / "family.toml").read_text(encoding="utf-8")
    for before, after in changes:
        text = re.sub(before, after, text, flags=re.MULTILINE)
    (made / "family.toml").write_text(text, encoding="utf-8")
    return str(made)


def test_check_config_says_that_a_family_cannot_be_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    family = altered_toy(tmp_path / "toy", (r"^\[evaluation\]\n(?:\w.*\n)*", ""), (r"^accuracy = .*\n", ""))
    assert run(family, "--check-config") == 0
    why = "family toy has neither evaluation rows nor an accuracy of half, full, so that it is served without a plan"
    assert f"clover: warning: {why}: add [evaluation], or accuracy = " in capsys.readouterr().out
    assert run(family, "--check-config", "--accuracy-floor", "90") == 2
    assert f"families.accuracy_floor 90 cannot be kept: {why}" in capsys.readouterr().err


def test_check_config_holds_a_floor_against_published_accuracies(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    published = r'\1\naccuracy = { value = 90.0, metric = "top1", source = "a page" }'
    family = altered_toy(
        tmp_path / "toy",
        (r"^\[evaluation\]\n(?:\w.*\n)*", ""),
        (r"^accuracy = .*\n", ""),
        (r"^(loader = .*)$", published),
    )
    assert run(family, "--check-config", "--accuracy-floor", "90") == 0
    assert "not checked: the accuracy floor" not in capsys.readouterr().out
    assert run(family, "--check-config", "--accuracy-floor", "95") == 2
    assert "accuracy_floor 95 is above the best variant's 90.00 %" in capsys.readouterr().err


def test_the_accuracy_floor_is_checked_where_a_profile_knows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [TOY, "--check-config", "--cache-dir", str(tmp_path), "--accuracy-floor"]
    assert run(*words, "99.9") == 0
    assert "not checked: the accuracy floor of toy, until its variants are measured here" in capsys.readouterr().out
    config = settings.load(words[:1], {}).config
    key = key_of(families.load_family(TOY), CpuDevice(), config)
    score = AccuracyMeasurement(
        variant="full",
        backend="eager",
        metric="top1",
        value=97.5,
        low=97.0,
        high=98.0,
        samples=1000,
        method="measured",
    )
    base = BasePoint(
        variant="full",
        profile="1c",
        count=1,
        backend="eager",
        p95_ms=1.0,
        energy_j_per_row=0.1,
        accuracy=97.5,
        method="modelled",
    )
    profile = FamilyProfile(
        family="toy",
        key=key,
        machine="",
        made_at="",
        quick=True,
        accuracy=(score,),
        latency=(),
        backend={"full": "eager"},
        base=base,
    )
    ProfileStore(tmp_path).put(profile)
    assert run(*words, "97") == 0
    assert "not checked" not in capsys.readouterr().out
    assert run(*words, "99.9") == 2
    assert "toy: accuracy_floor 99.9 is above the best variant's 97.50 %" in capsys.readouterr().err
    path = ProfileStore(tmp_path).path("toy", key)
    path.write_bytes(b"{")
    assert run(*words, "97") == 0, "the start measures it again"
    assert "not checked: the accuracy floor of toy" in capsys.readouterr().out
    assert path.read_bytes() == b"{", "a check changes nothing"
    assert run(*words, "97", "--profile", "require") == 3
    assert "is damaged" in capsys.readouterr().err


@pytest.mark.slow
def test_as_a_process_without_torch(tmp_path: Path) -> None:
    environ = {**{k: v for k, v in os.environ.items() if not k.startswith("CLOVER_")}, "HOME": str(tmp_path)}
    command = [sys.executable, "-m", "clover.serve", "fashion", "--check-config"]
    done = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert list(tmp_path.iterdir()) == [], "checking writes nothing"
    done = subprocess.run(
        [*command, "--port", "x"], cwd=ROOT, env=environ, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_taken_port_exits_with_three(tmp_path: Path) -> None:
    import socket

    environ = {**{k: v for k, v in os.environ.items() if not k.startswith("CLOVER_")}, "HOME": str(tmp_path)}
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = subprocess.run(
            [sys.executable, "-m", "clover.serve", TOY, "--port", port, "--log-level", "error"],
            cwd=ROOT,
            env=environ,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert done.returncode == 3, done.stderr
    assert port in done.stderr
    assert "Traceback" not in done.stderr


def test_check_config_says_what_only_a_start_can_tell_of_gpus(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(TOY, "--device", "nvidia:0", "--check-config") == 0
    assert "not checked: the GPUs of nvidia:0, until the start opens them" in capsys.readouterr().out
    assert run(TOY, "--device", "emulated:a100-40gb:2", "--check-config") == 0
    assert "not checked" not in capsys.readouterr().out


@pytest.mark.slow
def test_fewer_gpus_than_families_exits_with_three(tmp_path: Path) -> None:
    environ = {**{k: v for k, v in os.environ.items() if not k.startswith("CLOVER_")}, "HOME": str(tmp_path)}
    environ["XDG_CACHE_HOME"] = str(tmp_path)
    done = subprocess.run(
        [sys.executable, "-m", "clover.serve", TOY, "fashion", "--device", "emulated:rtx-4090:1", "--port", "0"],
        cwd=ROOT,
        env=environ,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 3, done.stderr
    assert "2 families (toy, fashion) need a GPU each, or a part of one that MIG splits, but there is 1" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_banner_counts_a_worker_with_several_variants_once() -> None:
    def at(start: int, variant: str) -> Assignment:
        place = Placement(device="cpu0", profile="1c", start=start, size=1)
        return Assignment(placement=place, family="toy", variant=variant, backend="eager")

    there = [at(0, "half"), at(0, "full"), at(1, "half"), at(1, "full"), at(2, "full")]
    assert banner._running(there, fixture("toy")) == "full (eager) on 1 core, 2 x half/full (eager) on 1 core"


def test_the_banner_says_whose_ledger_goes_on() -> None:
    status = LedgerStatus(Path("/state/8080.db"))
    assert banner._ledger(status, ["mine"]) == ""
    status.earlier_j, status.earlier_today, status.since_s = 812.34, ["demo", "mine"], 1_790_035_200.0
    goes_on = "goes on with 812.3 J of earlier runs since 2026-09-22, in /state/8080.db"
    assert banner._ledger(status, ["demo", "mine"]) == goes_on
    others = banner._ledger(status, ["mine"])
    assert others.startswith(f"{goes_on}; figures of today have those of demo in them")
    assert "--ledger-name NAME" in others


def test_the_command_for_a_file_prints_something_on_a_terminal() -> None:
    pytest.importorskip("PIL", reason="pillow is not installed")
    sent, _ = banner._example("http://x", "shades", fixture("shades"), "")
    assert sent.endswith("'Inference-Header-Content-Length: 0' | cat -v")  # curl alone writes no NULs there


def test_the_banner_says_of_how_many_rows_an_accuracy_is_if_they_are_not_all() -> None:
    spec, whole = fixture("toy"), profile(variants={"half": (70.0, 1.0), "full": (97.5, 2.0)})
    cut = tuple(msgspec.structs.replace(item, samples=900, of=5000) for item in whole.accuracy)
    parts = "half 70.0 % (by 900 of 5,000 rows), full 97.5 % (by 900 of 5,000 rows)"
    assert banner._variants(spec, msgspec.structs.replace(whole, accuracy=cut)) == parts
    assert banner._variants(spec, whole) == "half 70.0 %, full 97.5 %"


def test_the_banner_gives_untrained_variants_no_accuracy() -> None:
    spec = fixture("toy")
    untrained = msgspec.structs.replace(spec.variants[0], untrained=True)
    shown = banner._variants(msgspec.structs.replace(spec, variants=(untrained, *spec.variants[1:])), None)
    assert shown == ", ".join([f"{untrained.name} UNTRAINED", *(variant.name for variant in spec.variants[1:])])


def test_the_banner_doubts_a_target_that_was_measured_on_a_busy_machine() -> None:
    note = f"others used 60% of the cores meanwhile: {INFLATED}; measure again on a quiet machine"
    anew = "`--profile force` measures anew at the next start"
    quiet = profile()
    busy = msgspec.structs.replace(quiet, notes=("energy is modelled", note))
    assert banner._doubt(busy, None) == f"that target is loose: {note}; {anew}"
    assert banner._doubt(busy, 20.0) == ""
    assert banner._doubt(quiet, None) == ""
    assert banner._doubt(None, None) == ""


def test_json_logs_say_what_the_policy_may_cost_as_the_banner_does(caplog: pytest.LogCaptureFixture) -> None:
    cost = "may give up 0.5 points of accuracy on average over a day (--accuracy-budget 0 ends that)"
    toy = fixture("toy")
    untrained = tuple(msgspec.structs.replace(variant, untrained=True) for variant in toy.variants)
    random = msgspec.structs.replace(toy, name="exact", variants=untrained)
    engine = SimpleNamespace(
        config=settings.load([TOY, "--log-json"], {}).config,
        served={"toy": SimpleNamespace(spec=toy), "exact": SimpleNamespace(spec=random)},
        controller=SimpleNamespace(state=lambda: {"models": {"toy": {"terms": cost}, "exact": {"terms": ""}}}),
        grid=SimpleNamespace(reading=None),
        page=None,
    )
    with caplog.at_level("INFO", logger="clover.serve"):
        banner.show(cast(Server, SimpleNamespace(engine=engine, url="http://127.0.0.1:8080", grpc_target="")))
    ready, terms, warning = (record.getMessage() for record in caplog.records)
    assert (ready, terms) == ("ready", f"toy: {cost}")
    assert " of exact: UNTRAINED" in warning


def test_the_banner_says_that_a_synthetic_grid_is_invented_and_what_ends_that() -> None:
    invented = caveat(asyncio.run(SyntheticSource().read(0.0)))
    assert "THE GRID IS INVENTED" in invented
    assert "--carbon trace:FILE" in invented
    assert "--carbon static:G" in invented
    assert caveat(asyncio.run(StaticSource(300.0).read(0.0))) == ""
    stands_in = Reading(g_per_kwh=400.0, at_s=0.0, provider="stand-in", method="stand-in", state="configured")
    assert caveat(stands_in).startswith("THE INTENSITY IS NOT KNOWN: no source has a value, so 400 gCO2e/kWh stands in")
    assert "configured" not in describe(stands_in), "the user may have configured nothing"
    for config, whose in (
        (CarbonConfig(source="auto:DE"), "the default"),
        (CarbonConfig(source="auto:DE", configured_g_per_kwh=380.0), "set by carbon.configured_g_per_kwh"),
    ):
        reading = msgspec.structs.replace(stands_in, g_per_kwh=config.configured_g_per_kwh)
        engine = SimpleNamespace(config=SimpleNamespace(carbon=config), grid=SimpleNamespace(reading=reading))
        said = banner._carbon(cast(Server, SimpleNamespace(engine=engine)))
        words = f"{config.configured_g_per_kwh:g} gCO2e/kWh stands in, {whose}"
        assert said == f"auto:DE: no source has a value; {words}"
    assert caveat(None) == ""


def test_a_replayed_trace_is_warned_of_in_the_check_and_in_the_banners_words(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "day.csv"
    path.write_text(
        "datetime_utc,carbon_intensity_gco2_per_kwh\n2021-03-26T21:00Z,257\n2021-03-26T22:00Z,260\n", encoding="utf-8"
    )
    assert run(TOY, "--check-config", "--carbon", f"trace:{path}") == 0
    said = capsys.readouterr().out
    words = "THE INTENSITIES ARE OF ANOTHER TIME: trace:day is replayed, now at 2021-03-26T21:00:00Z"
    assert f"clover: warning: {words}" in said
    chain, clock = build(CarbonConfig(source=f"trace:{path}"))
    assert caveat(asyncio.run(chain.read(clock.now()))).startswith(words)
    assert run(TOY, "--check-config", "--carbon", "static:300") == 0
    assert "warning" not in capsys.readouterr().out


def test_the_banner_counts_workers_that_are_alike() -> None:
    def worker(variant: str, start: int) -> Assignment:
        placement = Placement(device="gpu0", profile="1g.5gb", start=start, size=1)
        return Assignment(placement=placement, family="toy", variant=variant, backend="eager")

    text = banner._running([worker("full", 0), worker("half", 1), worker("full", 2)], fixture("toy"))
    assert text == "2 x full (eager) on 1g.5gb, half (eager) on 1g.5gb"


def test_dispatcher(capsys: pytest.CaptureFixture[str]) -> None:
    assert dispatch(["--help"]) == 0
    assert dispatch([]) == 2
    assert dispatch(["profil"]) == 2
    assert "did you mean profile?" in capsys.readouterr().err
    assert dispatch(["serve", "--version"]) == 0
    assert dispatch(["profile", "--help"]) == 0
    shown = capsys.readouterr().out
    assert "--compile" in shown
    assert "--cores" in shown
    assert "--energy-core-w" in shown
    assert not {"--port", "--slo-ms", "--pue", "--policy", "--access"} & set(shown.split()), "profiling uses none"
    assert len(shown.splitlines()) <= 50
    assert dispatch(["profile", "nofamily"]) == 2


def test_the_console_script_is_the_dispatcher_and_lists_every_command(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    script = EntryPoint(name="clover", value=project["scripts"]["clover"], group="console_scripts").load()
    monkeypatch.setattr(sys, "argv", ["/usr/bin/clover", "--help"])
    bounded: list[int] = []
    monkeypatch.setattr("clover.__main__.bound_exit", bounded.append)
    assert script() == 0
    assert bounded == [0], "the process of a command ends in time, which this one of tests must not"
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "usage: clover COMMAND ..."
    listed = {line.split()[0]: line.strip() for line in lines if line.startswith("  ")}
    assert set(listed) == set(COMMANDS)
    assert all(len(about.split()) > 4 for about in listed.values()), "each with a line in plain English"
    assert max(map(len, lines)) <= 80


def test_a_command_of_a_wing_that_is_not_installed_says_so_in_a_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(COMMANDS, "fly", ("clover.wing.cli.fly", "Fly somewhere, of no use where nothing flies"))
    assert dispatch(["fly", "--help"]) == 2
    assert capsys.readouterr().err == "clover: this installation is without clover.wing, which has `fly`\n"
    assert dispatch(["--help"]) == 0
    assert "  fly" not in capsys.readouterr().out, "it is not listed"
    assert dispatch(["flyy"]) == 2
    assert "did you mean fly?" not in capsys.readouterr().err


def helps(words: list[str], capsys: pytest.CaptureFixture[str]) -> Iterator[str]:
    """Yield the lines of the help of a command, and of each of its verbs if it has any."""
    with contextlib.suppress(SystemExit):
        dispatch([*words, "--help"])
    shown = capsys.readouterr().out
    assert shown.startswith("usage: ")
    yield from shown.splitlines()
    verbs = shown.partition("\n  VERB\n")[2].partition("\n\n")[0]
    for verb in re.findall(r"^    ([\w-]+)", verbs, re.MULTILINE):
        yield from helps([*words, verb], capsys)


WORDS = [[], *([name] for name in COMMANDS), *(["family", verb] for verb in FAMILY)]


@pytest.mark.parametrize("words", WORDS, ids=lambda words: " ".join(words) or "clover")
def test_every_help_fits_eighty_columns(
    words: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert [line for line in helps(words, capsys) if len(line) > 80] == []


@pytest.mark.parametrize(
    ("called", "command", "expected"),
    [
        ("/usr/bin/clover", "serve", "clover serve"),
        ("/usr/bin/clover", "profile", "clover profile"),
        ("/usr/bin/clover", "ctl", "clover ctl"),
        ("/usr/bin/clover", "plan", "clover plan"),
        ("/usr/bin/clover", "simulate", "clover simulate"),
        ("/usr/bin/clover", "mig", "clover mig"),
        ("/site/clover/__main__.py", "serve", "python -m clover serve"),
        ("/site/clover/serve/__main__.py", "serve", "python -m clover.serve"),
        ("/site/clover/__main__.py", "mig", "python -m clover mig"),
        ("", "plan", "python -m clover plan"),
    ],
)
def test_help_names_the_program_as_it_was_called(
    called: str, command: str, expected: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", [called])
    assert dispatch([command, "--help"]) == 0
    assert capsys.readouterr().out.startswith(f"usage: {expected} ")


@pytest.mark.parametrize(
    "words", [["clover", "ctl", "state"], ["clover", "plan", "x"], ["clover", "serve"], ["clover.serve", "fashion"]]
)
def test_without_what_clover_needs_one_line_says_where_it_is(words: list[str]) -> None:
    program = f"import runpy, sys; sys.argv[1:] = {words[1:]}; runpy.run_module({words[0]!r}, run_name='__main__')"
    bare = [sys.executable, "-I", "-S", "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r}); {program}"]
    done = subprocess.run(bare, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 3
    assert re.fullmatch(r"clover: \w+ is not installed for .*\.venv/bin/python.*\n", done.stderr)


# --- logs ---------------------------------------------------------------------------------------------------------


def test_logs_as_text_and_as_json() -> None:
    stream = io.StringIO()
    logs.configure(LogConfig(level="info"), stream)
    logging.getLogger("clover.fleet").debug("hidden")
    logging.getLogger("clover.fleet").info("a worker %s", "died")
    assert stream.getvalue().endswith(" info    fleet: a worker died\n")
    stream = io.StringIO()
    logs.configure(LogConfig(json=True), stream)
    try:
        raise ValueError("why")
    except ValueError:
        logging.getLogger("clover.http").exception("failed\nbadly", extra={"request_id": "r1"})
    line = json.loads(stream.getvalue())
    assert (line["level"], line["logger"], line["message"]) == ("error", "clover.http", "failed\nbadly")
    assert line["request_id"] == "r1"
    assert "ValueError: why" in line["traceback"]
    assert line["time"].endswith("Z")
    logs.set_level("error")
    logging.getLogger("clover.http").warning("hidden")
    assert stream.getvalue().count("\n") == 1


# --- reload -------------------------------------------------------------------------------------------------------


class Running:
    """A server with a controller that takes `set`."""

    def __init__(self, refuse: bool = False) -> None:
        self.engine = self
        self.life = Life()
        self.served = {"a": None, "b": None}
        self.frontend = None
        self.operators = Operators(Grants())
        self.calls: list[tuple[str, dict[str, Any], str]] = []
        self._refuse = refuse

    def control(self) -> Running:
        return self

    async def command(self, verb: str, arguments: dict[str, Any], operator: str) -> dict[str, Any]:
        if self._refuse:
            raise BadRequest("not now")
        self.calls.append((verb, arguments, operator))
        return {}


def reload(before: list[str], after: list[str], server: Any, check: Any = lambda config: None) -> Reload:
    reloading = Reload(lambda: settings.load(after, {}, options=OPTIONS), check, settings.load(before, {}))
    reloading.server = server
    asyncio.run(reloading.run())
    return reloading


def test_reload_changes_what_may_change_and_refuses_the_rest(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "clover.serve")
    server = Running()
    reloading = reload(["a", "b"], ["a", "b", "--mode", "observe", "--slo-ms", "9", "--port", "1"], server)
    assert server.calls == [
        ("set", {"slo_ms": 9.0, "model": "a"}, "SIGHUP"),
        ("set", {"slo_ms": 9.0, "model": "b"}, "SIGHUP"),
        ("set", {"mode": "observe"}, "SIGHUP"),
    ]
    assert "listen.port changes at a restart only" in caplog.text
    assert "3 of 4 changed settings are live" in caplog.text
    server.calls.clear()
    asyncio.run(reloading.run())
    assert server.calls == [], "what is live already is not changed again"
    assert caplog.text.count("listen.port changes at a restart only") == 2


def test_reload_of_a_bad_configuration_changes_nothing(caplog: pytest.LogCaptureFixture) -> None:
    server = Running()

    def bad(config: Any) -> None:
        raise ConfigError("no such trace")

    reload(["a"], ["a", "--mode", "off"], server, bad)
    reload(["a"], ["a", "--mode", "sideways"], server)
    assert server.calls == []
    assert caplog.text.count("nothing was changed") == 2


def test_reload_tells_of_a_refusal_and_keeps_trying(caplog: pytest.LogCaptureFixture) -> None:
    reloading = reload(["a"], ["a", "--mode", "off"], Running(refuse=True))
    assert "controller.mode was not changed: not now" in caplog.text
    server = Running()
    reloading.server = server  # type: ignore[assignment]
    asyncio.run(reloading.run())
    assert server.calls == [("set", {"mode": "off"}, "SIGHUP")]


def test_a_target_that_is_taken_away_waits_for_a_restart(caplog: pytest.LogCaptureFixture) -> None:
    server = Running()
    reload(["a", "--slo-ms", "5", "--lam", "0.1"], ["a"], server)
    assert server.calls == [("set", {"lambda": None}, "SIGHUP")]
    assert "families.slo_ms without a value is derived again at a restart only" in caplog.text


def test_reload_changes_the_log_level() -> None:
    reload(["a"], ["a", "--log-level", "error"], Running())
    assert logging.getLogger("clover").level == logging.ERROR


def test_reload_changes_tenants(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "clover.serve")
    file = tmp_path / "clover.toml"
    used: list[tuple[str, ...]] = []
    server = Running()
    server.use_tenants = lambda configs: used.append(tuple(tenant.name for tenant in configs))  # type: ignore[attr-defined]
    file.write_text('[[tenant]]\nname = "acme"\ntoken = "very-secret"\n')
    words = [str(file)]
    reloading = Reload(lambda: settings.load(words, {}, options=OPTIONS), lambda config: None, settings.load(words, {}))
    reloading.server = server  # type: ignore[assignment]
    file.write_text(file.read_text() + '[[tenant]]\nname = "b"\ntoken = "another-secret"\n')
    for _ in range(2):
        asyncio.run(reloading.run())
    assert used == [("acme", "b")]
    assert "tenants are now acme, b" in caplog.text
    assert "secret" not in caplog.text


def test_differences_name_settings_and_families() -> None:
    old = settings.load(["a"], {})
    new = settings.load(["a", "b", "--pue", "1.2"], {})
    assert differences(old, new) == [("families", None, None), ("carbon.pue", None, 1.2)]


@pytest.mark.parametrize(("keep", "home", "kept"), [("auto", True, "on"), ("off", True, "off"), ("auto", False, "off")])
def test_the_command_keeps_a_ledger_unless_there_is_no_home(
    keep: Any, home: bool, kept: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def no_home(text: str) -> Path:
        raise ConfigError("there is no such home folder")

    if not home:
        monkeypatch.setattr("clover.serve.command.state_folder", no_home)
    assert with_ledger(ServerConfig(ledger=LedgerConfig(keep=keep))).ledger.keep == kept
    assert ("no ledger is kept: there is no such home folder" in caplog.text) is not home
