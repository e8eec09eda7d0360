"""New versions under load, in one server: a good one is promoted, a worse and a slow one are rolled back by themselves,
and no client notices."""

from __future__ import annotations

import http.client
import json
import logging
import os
import shutil
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import clover
from clover.cli.ctl import main as ctl
from clover.runtime.guard.release import ReleaseLimits
from clover.server import rollouts
from tests.support.toy_family import TOY, settings

ROWS = 8
FAULTS = """

def load(variant: Any, folder: Path) -> nn.Module:
    return Faulty(int(variant.parameters["seen"]), int(variant.parameters["layers"])).eval()


class Faulty(Toy):
    def forward(self, numbers: torch.Tensor) -> torch.Tensor:
        time.sleep({delay_s})
        answers = super().forward(numbers)
        wrong = (numbers[:, :1].abs() * 1000.0) % 1.0 < {wrong}
        return torch.where(wrong, answers.roll(1, dims=1), answers)
"""


def version(folder: Path, name: str, *, wrong: float = 0.0, delay_s: float = 0.0, shape: int = 4) -> Path:
    """Make a version of the family `toy`."""
    made = folder / name
    shutil.copytree(TOY, made)
    declared = (made / "family.toml").read_text(encoding="utf-8").replace("shape = [4]", f"shape = [{shape}]", 1)
    (made / "family.toml").write_text(f'version = "{name}"\n{declared}', encoding="utf-8")
    code = (made / "model.py").read_text(encoding="utf-8").replace("from pathlib", "import time\nfrom pathlib")
    (made / "model.py").write_text(code + FAULTS.format(wrong=wrong, delay_s=delay_s), encoding="utf-8")
    return made


class Clients:
    """Clients that ask all the time and send the labels of every answer."""

    def __init__(self, url: str, count: int = 3) -> None:
        self.statuses: Counter[int] = Counter()
        self.versions: Counter[str] = Counter()
        self.labels: Counter[int] = Counter()
        self._host, self._port = url.removeprefix("http://").split(":")
        self._ended = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(seed,)) for seed in range(count)]
        for thread in self._threads:
            thread.start()

    def _run(self, seed: int) -> None:
        random = np.random.default_rng(seed)
        connection = http.client.HTTPConnection(self._host, int(self._port), timeout=60.0)
        while not self._ended.is_set():
            numbers = random.standard_normal((ROWS, 4))
            tensor = {"name": "INPUT0", "datatype": "FP32", "shape": [ROWS, 4], "data": numbers.tolist()}
            answer = self._post(connection, "infer", {"inputs": [tensor]}, self.statuses)
            self.versions[answer[0].get("model_version", "")] += 1
            labels = numbers.argmax(axis=1).tolist()
            self._post(connection, "feedback", {"id": answer[1], "labels": labels}, self.labels)
        connection.close()

    def _post(
        self, connection: http.client.HTTPConnection, what: str, body: dict[str, Any], counted: Counter[int]
    ) -> tuple[dict[str, Any], str]:
        connection.request("POST", f"/v2/models/toy/{what}", json.dumps(body))
        response = connection.getresponse()
        text = response.read()
        counted[response.status] += 1
        return json.loads(text), response.getheader("x-request-id", "")

    def end(self) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join()


class Operator:
    """What an operator does, through `clover ctl`."""

    def __init__(self, url: str, capsys: pytest.CaptureFixture[str]) -> None:
        self._url = url
        self._capsys = capsys

    def __call__(self, *arguments: str, code: int = 0) -> str:
        self._capsys.readouterr()
        assert ctl(["roll-out", *arguments, "--url", self._url], {}) == code
        captured = self._capsys.readouterr()
        return captured.out + captured.err

    def until(self, phase: str, within_s: float = 90.0) -> dict[str, Any]:
        """Wait until the roll-out is in `phase`."""
        end_s = time.monotonic() + within_s
        while (found := json.loads(self("--status", "--json")))["phase"] != phase:
            assert time.monotonic() < end_s, json.dumps(found, indent=1)
            time.sleep(0.1)
        return dict(found)


def wait(condition: Callable[[], bool], within_s: float = 60.0) -> None:
    end_s = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < end_s
        time.sleep(0.02)


@pytest.mark.timeout(400)
@pytest.mark.usefixtures("forked_zygotes")
def test_versions_are_promoted_or_rolled_back_by_themselves_and_no_client_notices(
    toy_cache: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = ReleaseLimits(errors=0.05, slower=2.0, slower_ms=5.0, warmup_s=0.5, block_s=0.1, min_s=3.0, max_s=600.0)
    monkeypatch.setattr(rollouts, "limits_of", lambda settings: limits)
    monkeypatch.setattr(rollouts, "PAIRED", 0.4)
    folder = toy_cache / "versions"
    good, worse = version(folder, "2"), version(folder, "3", wrong=0.02)
    slow, other = version(folder, "4", delay_s=0.05), version(folder, "5", shape=5)
    how: dict[str, Any] = {
        **settings(toy_cache),
        "http": True,
        "port": 0,
        "state_dir": str(toy_cache / "state"),
        "rollout_root": str(folder),
        "rollout_percent": 25.0,
        "feedback_rows": 500_000,
    }
    with clover.Server(TOY, **how) as server:
        engine, operate = server.engine, Operator(server.url, capsys)
        before = set(engine.served)
        clients = Clients(server.url)
        try:
            # What cannot be rolled out is refused, and why.
            assert "other inputs" in operate(str(other), code=1)
            assert "does not lie in" in operate(TOY, code=1)
            assert "could be tried beside version 1" in operate(str(good), "--dry-run")

            # A good version is promoted.
            assert "version 2 is beside version 1 (trial)" in operate("toy", str(good))
            assert "is being rolled out" in operate(str(worse), code=1)
            assert "toy@2" in engine.served
            state = json.dumps(engine.control().state())
            assert '"phase": "trial"' in state
            assert b'clover_rollout_percent{model="toy",version="2"} 25.0' in engine.metrics()
            found = operate.until("promoted")
            assert found["tests"]["accuracy"]["observations"] > 0
            assert found["failed"] == {"new": 0, "stable": 0}
            wait(lambda: clients.versions["2"] > 0 and set(engine.served) == before)
            assert engine.pick("toy").spec.version == "2"
            good_rows = found["tests"]["accuracy"]["observations"]

            # One that is 2 points worse is rolled back for its accuracy, one that is slow for its latency.
            operate(str(worse))
            found = operate.until("rolled back")
            assert found["why"].startswith("accuracy: -")
            worse_rows = found["tests"]["accuracy"]["observations"]
            operate(str(slow))
            found = operate.until("rolled back")
            assert found["why"].startswith(("slower: ", "tail: "))
            slow_requests = found["requests"]["new"]
            assert clients.versions["4"] > 0

            # Workers of the new version that die cost no client an answer; an operator may end it.
            limits = ReleaseLimits(errors=0.5, differs=1.0, accuracy=0.5)
            operate(str(worse))
            wait(lambda: bool(engine.served["toy@3"].fleet.describe()))
            for worker in engine.served["toy@3"].fleet.describe():
                os.kill(worker["pid"], signal.SIGKILL)
            time.sleep(0.5)
            assert "version 3 rolled back: by " in operate("--roll-back")
            wait(lambda: set(engine.served) == before)
            seen = sum(clients.statuses.values())
            wait(lambda: sum(clients.statuses.values()) > seen + 20)
        finally:
            clients.end()
        assert set(clients.statuses) == {200}
        assert set(clients.versions) == {"1", "2", "3", "4"}
        decisions = engine.control().decisions(50)  # type: ignore[attr-defined]
        trials = [item for item in decisions if item["trigger"].startswith("roll-out of version")]
        assert [item["action"] for item in reversed(trials)] == [
            "applied",
            "applied",
            *(["applied", "rolled back"] * 3),
        ]
        rows = "rows to decision: %d (good), %d (worse); requests of the slow one: %d"
        logging.getLogger("tests").warning(rows, good_rows, worse_rows, slow_requests)
        operate(str(worse))  # and the server ends meanwhile
    # A start after it serves what was promoted, and says what became of the trial.
    with clover.Server(TOY, **how, variant="full") as server:  # which needs no profile of version 2
        assert server.engine.pick("toy").spec.version == "2"
        said = json.dumps(server.engine.control().decisions(20))  # type: ignore[attr-defined]
        assert "version 2 serves, which was promoted" in said
        assert "the server ended while version 3 was tried: version 2 serves" in said
