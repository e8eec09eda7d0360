"""How long it takes from nothing to a first answer: from a clone, from a wheel, and with two other servers.

    python -m bench.first_answer [--rounds 5] [--wheel FILE.whl] [--only clone wheel litserve fastapi] [--json FILE]

Each round goes through all of them in turn, in an empty folder with an empty HOME, so that pip downloads everything.
`clone`: `git clone`, then `make serve` as the README says, and the same once more.  `wheel`: a new environment, pip,
`clover serve fashion`, and the same once more.  The others: a new environment, pip, and the server of their README's
shape, with the network of `fashion`'s best variant.  An answer is a 200 with an answer to `docs/shirt.json`'s picture,
asked every 50 ms.  All take the torch that packaging/torch_build.py chooses.  Seconds are wall time, measured; the
network and its cache are part of them.  A round takes six minutes on two cores.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from bench.common import ROOT, free_port, provenance, show, write_json

LONGEST_S = 900.0
OWN = ("HOME", "XDG_", "PYTHON", "VIRTUAL_ENV", "CLOVER_")
"""Beginnings of the names of variables that a new user does not have as we do."""
SHIRT = json.loads((ROOT / "docs/shirt.json").read_bytes())
PICTURE = SHIRT["inputs"][0]["data"]
Parts = dict[str, float]

_NETWORK = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
import torch
from types import SimpleNamespace
from pathlib import Path
from models.fashion.model import load

def network():
    variant = SimpleNamespace(name="xlarge", parameters={{}}, weights="weights/xlarge.safetensors")
    return load(variant, Path({str(ROOT / "models/fashion")!r}))

def rows(values):
    return torch.tensor(values, dtype=torch.float32).reshape(1, 1, 28, 28)
"""
_LITSERVE = """
import litserve as ls

class Api(ls.LitAPI):
    def setup(self, device):
        self.model = network()
    def decode_request(self, request):
        return rows(request["data"])
    def predict(self, x):
        with torch.inference_mode():
            return self.model(x)
    def encode_response(self, output):
        return {"data": output[0].tolist()}

if __name__ == "__main__":
    ls.LitServer(Api(), accelerator="cpu").run(port=int(sys.argv[1]))
"""
_FASTAPI = """
from fastapi import FastAPI

app, model = FastAPI(), network()

@app.post("/predict")
def predict(request: dict):
    with torch.inference_mode():
        return {"data": model(rows(request["data"]))[0].tolist()}

if __name__ == "__main__":
    import uvicorn
    uvicorn.run(app, port=int(sys.argv[1]))
"""
PEERS = {"litserve": (_LITSERVE, "litserve"), "fastapi": (_FASTAPI, "fastapi[standard]")}


class Stopwatch:
    """Seconds since the start, part by part."""

    def __init__(self) -> None:
        self._last = time.monotonic()
        self.parts: Parts = {}

    def lap(self, name: str) -> None:
        """Say that the part `name` ends now."""
        now = time.monotonic()
        self.parts[name], self._last = now - self._last, now


@contextlib.contextmanager
def running(
    command: list[str], folder: Path, environment: dict[str, str], log: Path
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server in a session of its own until the block ends."""
    with open(log, "ab") as sink:
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=sink, stderr=sink,
            start_new_session=True,
        )  # fmt: skip
    try:
        yield process
    finally:
        for number in (signal.SIGINT, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(60)
                break


def wait_for_answer(process: subprocess.Popen[bytes], url: str, body: object, log: Path) -> None:
    """Return as soon as `url` answers `body` with 200; RuntimeError if the server ends, or after `LONGEST_S`."""
    asked = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    end = time.monotonic() + LONGEST_S
    while time.monotonic() < end and process.poll() is None:
        with contextlib.suppress(OSError), urllib.request.urlopen(asked, timeout=10) as answer:
            if answer.status == 200:
                return
        time.sleep(0.05)
    raise RuntimeError(f"no answer from {url}:\n{log.read_text(errors='replace')[-3000:]}")


def answered(command: list[str], folder: Path, environment: dict[str, str], url: str, body: object) -> None:
    """Start a server, wait for its first answer, stop it."""
    log = folder / "server.log"
    with running(command, folder, environment, log) as process:
        wait_for_answer(process, url, body, log)


def installed(folder: Path, environment: dict[str, str], *packages: str) -> Path:
    """Make an environment with packages, torch as on this machine; return its Python."""
    python = folder / "venv/bin/python"
    subprocess.run([sys.executable, "-m", "venv", str(folder / "venv")], check=True)
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    chosen = [str(python), str(ROOT / "packaging/torch_build.py"), "torch>=2.6"]
    torch = subprocess.run(chosen, check=True, capture_output=True, text=True, env=environment).stdout.split()
    if torch:
        index = os.environ.get("TORCH_INDEX", "https://download.pytorch.org/whl/cpu")
        subprocess.run([*pip, "--index-url", index, *torch], check=True, env=environment)
    subprocess.run([*pip, *packages], check=True, env=environment)
    return python


def clone(folder: Path, environment: dict[str, str]) -> Parts:
    """Clone, `make serve` to the first answer, and once more."""
    watch, port = Stopwatch(), free_port()
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(folder / "clover")], check=True)
    watch.lap("clone")
    url = f"http://127.0.0.1:{port}/v2/models/fashion/infer"
    serve = ["make", "serve", f"ARGS=--port {port}"]
    for name in ("make serve", "second start"):
        answered(serve, folder / "clover", environment, url, SHIRT)
        watch.lap(name)
    return watch.parts


def wheel(folder: Path, environment: dict[str, str], file: Path) -> Parts:
    """Install a wheel, start it to the first answer, and once more."""
    watch, port = Stopwatch(), free_port()
    python = installed(folder, environment, f"{file}[onnx]")
    watch.lap("pip")
    url = f"http://127.0.0.1:{port}/v2/models/fashion/infer"
    for name in ("first start", "second start"):
        answered(
            [str(python), "-m", "clover", "serve", "fashion", "--port", str(port)], folder, environment, url, SHIRT
        )
        watch.lap(name)
    return watch.parts


def peer(name: str, folder: Path, environment: dict[str, str]) -> Parts:
    """Install another server, start it to the first answer, and once more."""
    code, package = PEERS[name]
    watch, port = Stopwatch(), free_port()
    python = installed(folder, environment, "torch>=2.6", package, "safetensors", "numpy")
    watch.lap("pip")
    (folder / "server.py").write_text(_NETWORK + code)
    for part in ("first start", "second start"):
        answered(
            [str(python), "server.py", str(port)],
            folder,
            environment,
            f"http://127.0.0.1:{port}/predict",
            {"data": PICTURE},
        )
        watch.lap(part)
    return watch.parts


def main() -> None:
    """Run the bench."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--wheel", default="", help="by default the one of this Python in dist/")
    parser.add_argument("--only", nargs="+", default=["clone", "wheel", *PEERS], choices=["clone", "wheel", *PEERS])
    parser.add_argument("--json", default="", help="also write the figures to this file")
    options = parser.parse_args()
    tag = f"cp{sys.version_info.major}{sys.version_info.minor}"
    files = [Path(options.wheel).absolute()] if options.wheel else sorted((ROOT / "dist").glob(f"*-{tag}-*.whl"))
    if "wheel" in options.only and not files:
        parser.error(f"dist/ has no wheel for {tag}: make release, or name one by --wheel")
    ways: dict[str, Callable[[Path, dict[str, str]], Parts]] = {
        "clone": clone,
        "wheel": lambda folder, environment: wheel(folder, environment, files[-1]),
        **{name: partial(peer, name) for name in PEERS},
    }
    found: dict[str, list[Parts]] = {name: [] for name in options.only}
    for _ in range(options.rounds):
        for name in options.only:
            with tempfile.TemporaryDirectory() as empty:
                home = Path(empty) / "home"
                home.mkdir()
                environment = {key: value for key, value in os.environ.items() if not key.startswith(OWN)}
                found[name].append(ways[name](Path(empty), environment | {"HOME": str(home)}))
            print(name, {part: round(s, 1) for part, s in found[name][-1].items()}, file=sys.stderr, flush=True)
    rows: list[list[object]] = []
    for name, rounds in found.items():
        for part in rounds[0]:
            seconds = [one[part] for one in rounds]
            rows.append([name, part, statistics.median(seconds), f"{min(seconds):.1f} to {max(seconds):.1f}"])
        first = [sum(s for part, s in one.items() if part != "second start") for one in rounds]
        rows.append([name, "to the first answer", statistics.median(first), f"{min(first):.1f} to {max(first):.1f}"])
    show(f"seconds, {options.rounds} rounds, {provenance()['cores']} cores", ("from", "part", "median", "range"), rows)
    write_json(options.json, {"seconds": found})


if __name__ == "__main__":
    main()
