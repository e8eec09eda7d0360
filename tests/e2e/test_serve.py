"""The command as users run it: first start, banner, one answer, reload, an orderly end."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from clover.telemetry.ledger.store import LedgerReader
from tests.support.forks import Forks, Program
from tests.support.mig_runs import BEGIN

ROOT = Path(__file__).resolve().parents[2]
TOY = str(ROOT / "tests" / "families" / "toy")


FORKED = (
    BEGIN
    + """
from clover.hints import until_closed
from clover.serve import main
sys.exit(until_closed(main))
"""
)


class Process:
    """`python -m clover.serve` with its output in files; with `scenes`, in a fork of that process."""

    def __init__(self, folder: Path, config: Path, *flags: str, scenes: Forks | None = None) -> None:
        environ = {k: v for k, v in os.environ.items() if not k.startswith("CLOVER_")} | {"HOME": str(folder)}
        for name in ("XDG_CACHE_HOME", "XDG_STATE_HOME"):
            environ.pop(name, None)
        self.out, self.err = folder / "out", folder / "err"
        self.process: subprocess.Popen[bytes] | Program
        with open(os.devnull) as nothing, self.out.open("wb") as out, self.err.open("wb") as err:
            if scenes is not None:
                standard = nothing.fileno(), out.fileno(), err.fileno()
                self.process = scenes.begin(FORKED, [str(config), *flags], environ, standard)
                return
            self.process = subprocess.Popen(
                [sys.executable, "-m", "clover.serve", str(config), *flags],
                cwd=ROOT,
                env=environ,
                stdout=out,
                stderr=err,
            )

    def wait_for(self, pattern: str, path: Path, within_s: float = 60.0) -> re.Match[str]:
        until = time.monotonic() + within_s
        while time.monotonic() < until:
            match = re.search(pattern, path.read_text(encoding="utf-8"), re.MULTILINE)
            if match is not None:
                return match
            assert self.process.poll() is None, self.err.read_text(encoding="utf-8")
            time.sleep(0.05)
        raise AssertionError(f"no {pattern!r} in {path.read_text(encoding='utf-8')!r}")


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "clover.toml"
    path.write_text(
        f"profile = 'wait'\n[[families]]\nfamily = '{TOY}'\n[listen]\nport = 0\n[carbon]\nsource = 'static:300'\n"
        "[workers]\nbackends = ['eager']\n",
        encoding="utf-8",
    )
    return path


@pytest.fixture
def serving(tmp_path: Path, config: Path) -> Iterator[Process]:
    made = Process(tmp_path, config)
    yield made
    if made.process.poll() is None:
        made.process.kill()
        made.process.wait()


def _bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"} if token else {}


def _freeze(url: str, token: str) -> int:
    """Return the status of the answer to a command that changes nothing much."""
    asked = urllib.request.Request(f"{url}/v2/clover/freeze", b'{"on": false}', _bearer(token))
    try:
        with urllib.request.urlopen(asked, timeout=10) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def test_first_start_banner_answer_reload_and_end(
    serving: Process, config: Path, scenes: Forks, tmp_path: Path
) -> None:
    url = serving.wait_for(r"at (http://127\.0\.0\.1:\d+)", serving.out)[1]
    serving.wait_for("v2/clover/state", serving.out)
    banner = serving.out.read_text(encoding="utf-8")
    assert re.search(r"toy: half \d+\.\d %, full \d+\.\d %", banner)
    assert re.search(r"energy +modelled", banner)
    assert "300 gCO2e/kWh (configured" in banner
    assert "measuring toy on this machine once" in serving.err.read_text(encoding="utf-8")

    # The example of the banner is one that works.
    lines = [line.strip() for line in banner.splitlines() if line.strip().startswith(("python3", "|"))]
    program = shlex.split(lines[0].rstrip("\\ "))[2]
    body = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True).stdout
    with urllib.request.urlopen(f"{url}/v2/models/toy/infer", data=body, timeout=10) as answer:
        outputs = json.load(answer)["outputs"]
        assert outputs[0]["shape"] == [1, 4]
        assert "Clover-Receipt" in answer.headers

    # A reload that cannot be used changes nothing; one that can is taken live.
    good = config.read_text(encoding="utf-8")
    config.write_text(good + "[lgo]\nlevel = 'debug'\n", encoding="utf-8")
    serving.process.send_signal(signal.SIGHUP)
    serving.wait_for("SIGHUP: nothing was changed: .*did you mean log", serving.err, 10)
    config.write_text(good + "[log]\nlevel = 'debug'\n[limits]\nhead_bytes = 20000\n", encoding="utf-8")
    serving.process.send_signal(signal.SIGHUP)
    serving.wait_for("limits.head_bytes changes at a restart only", serving.err, 10)
    serving.wait_for("SIGHUP: 1 of 2 changed settings are live", serving.err, 10)

    # Tokens come and go while it serves, and who changed what is remembered.
    secret = tmp_path / "ops.token"
    secret.write_text("ops-1\n", encoding="utf-8")
    token = f"[[token]]\nname = 'ops'\ntoken = 'file:{secret}'\nscopes = ['read', 'control']\n"
    assert _freeze(url, "") == 200, "from this machine, as there is no token yet"
    config.write_text(good + token, encoding="utf-8")
    serving.process.send_signal(signal.SIGHUP)
    serving.wait_for("SIGHUP: tokens are now ops", serving.err, 10)
    assert [_freeze(url, bearer) for bearer in ("", "ops-1", "ops-2")] == [401, 200, 401]
    secret.write_text("ops-2\n", encoding="utf-8")
    serving.process.send_signal(signal.SIGHUP)
    serving.wait_for(r"(?s)tokens are now ops.*tokens are now ops", serving.err, 10)
    assert [_freeze(url, bearer) for bearer in ("ops-1", "ops-2")] == [401, 200]
    with urllib.request.urlopen(urllib.request.Request(f"{url}/v2/clover/audit", headers=_bearer("ops-2"))) as answer:
        said = [(one["who"], one["call"], one["status"]) for one in json.load(answer)]
    freezes = [one for one in reversed(said) if one[1] == "freeze"]
    assert [one[0] for one in freezes] == ["local", "unknown", "token ops", "unknown", "unknown", "token ops"]
    assert [one[2] for one in freezes] == [200, 401, 200, 401, 401, 200]
    assert ("SIGHUP", "reload", 200) in said

    serving.process.send_signal(signal.SIGTERM)
    assert serving.process.wait(20) == 0
    assert "Traceback" not in serving.err.read_text(encoding="utf-8")

    # The ledger has it too.
    (ledger,) = tmp_path.rglob("*.db")
    with LedgerReader(ledger) as reader:
        kept = [event.summary for event in reader.events(0.0, 1e12, kinds=("control",))]
    assert sum(summary.startswith("freeze by token ops (http): done") for summary in kept) == 2
    assert "ops-1" not in str(kept)

    # The second start finds the profile.
    config.write_text(good, encoding="utf-8")
    again = Process(tmp_path, config, "--log-json", "--profile", "require", scenes=scenes)
    try:
        line = json.loads(again.wait_for(r'^.*"message": "ready".*$', again.err)[0])
        assert (line["logger"], line["families"]) == ("clover.serve", ["toy"])
        assert line["url"].startswith("http://127.0.0.1:")
        assert again.out.read_bytes() == b""
        assert all(json.loads(row) for row in again.err.read_text(encoding="utf-8").splitlines())
    finally:
        again.process.send_signal(signal.SIGINT)
        assert again.process.wait(20) == 0
