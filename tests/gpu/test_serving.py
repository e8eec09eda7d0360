"""`fashion` served by a GPU, as users start it: the command, a request over HTTP, what it says of itself, its end."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import clover
from clover import families

from .conftest import ROOT

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(900), pytest.mark.usefixtures("box")]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder of profiles: whichever test comes first measures."""
    return tmp_path_factory.mktemp("cache")


def test_fashion_is_served_by_the_gpu(cache: Path) -> None:
    """Embedded: the answers are right, and what they cost was measured on the board."""
    settings: dict[str, Any] = {
        "device": "nvidia:0",
        "backends": ("eager",),
        "cache_dir": str(cache),
        "carbon": "static:300",
        "port": 0,
        "start_s": 300.0,
    }
    with clover.Server("fashion", **settings) as server:
        (images,), labels = families.load_evaluation(families.load_family("fashion"), "held_out")
        answer = server.infer({"image": images[:256]})
        right = float((answer["probabilities"].argmax(axis=1) == labels[:256]).mean())
        assert right > 0.8
        np.testing.assert_allclose(answer["probabilities"].sum(axis=1), 1.0, atol=1e-3)
        assert answer.receipt.method in ("measured", "modelled")
        assert answer.receipt.energy_j > 0
        running = server.engine.pick(None).fleet.ready_assignments()
        assert {item.placement.device for item in running} == {"gpu0"}
        with urllib.request.urlopen(f"{server.url}/metrics", timeout=10) as page:
            metrics = page.read().decode()
        assert re.search(r'clover_[a-z_]*joules[a-z_]*\{[^}]*device="gpu0"[^}]*\} [1-9]', metrics)


def test_the_command_serves_and_ends(cache: Path, tmp_path: Path) -> None:
    flags = ["--device", "nvidia:0", "--backends", "eager", "--port", "0", "--carbon", "static:300", "--start-s", "300"]
    out, err = tmp_path / "out", tmp_path / "err"
    with out.open("wb") as stdout, err.open("wb") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-m", "clover.serve", "fashion", "--cache-dir", str(cache), *flags],
            cwd=ROOT,
            stdout=stdout,
            stderr=stderr,
        )
    try:
        url = ""
        end_s = time.monotonic() + 600.0
        while not url:
            found = re.search(r"at (http://127\.0\.0\.1:\d+)", out.read_text(encoding="utf-8"))
            url = found[1] if found else ""
            assert process.poll() is None, err.read_text(encoding="utf-8")[-3000:]
            assert time.monotonic() < end_s, "it was not ready in time"
            time.sleep(0.2)
        body = {"inputs": [{"name": "image", "shape": [1, 1, 28, 28], "datatype": "FP32", "data": [0.0] * 784}]}
        request = urllib.request.Request(f"{url}/v2/models/fashion/infer", data=json.dumps(body).encode())
        with urllib.request.urlopen(request, timeout=10) as answer:
            assert json.load(answer)["outputs"][0]["shape"] == [1, 10]
            assert "Clover-Receipt" in answer.headers
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        assert "Traceback" not in err.read_text(encoding="utf-8")
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
