"""Serves the classifier of docs/bring-your-own.md with each framework, and compares its answer with the model's own."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import sysconfig
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.fenced import ROOT, files_of
from tests.support.process_groups import end, free_ports

START_S = 300.0
ENVIRONMENTS = ROOT / ".venv-moving"

# The picture, and what the model itself says of it; also the weights, and the model as Triton's backend wants it.
MODEL = """
import json, warnings
from pathlib import Path
import torch
from net import Net
torch.manual_seed(1)
net, picture = Net().eval(), torch.rand(1, 28, 28)
torch.save(net.state_dict(), "net.pt")
Path("repository/net/1").mkdir(parents=True)
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    torch.jit.script(net).save("repository/net/1/model.pt")
with torch.inference_mode():
    truth = net(picture[None])[0].tolist()
Path("truth.json").write_text(json.dumps({"picture": picture.tolist(), "truth": truth}))
"""
TORCHSERVE = """
inference_address=http://127.0.0.1:{port}
management_address=http://127.0.0.1:{second}
metrics_address=http://127.0.0.1:{third}
enable_grpc=false
default_workers_per_model=1
"""


@dataclass(frozen=True)
class Framework:
    """How a framework is installed, started and asked.  `commands` get ready, the last one serves."""

    commands: Callable[[str, tuple[int, ...]], list[list[str]]]
    health: str
    path: str
    body: Callable[[Any], Any]
    answer: Callable[[Any], Any]
    packages: tuple[str, ...] = ()


def oip(picture: Any) -> Any:
    """Return a request of the Open Inference Protocol."""
    data = [value for row in picture[0] for value in row]
    return {"inputs": [{"name": "image", "datatype": "FP32", "shape": [1, 1, 28, 28], "data": data}]}


def clover(*ready: str) -> Callable[[str, tuple[int, ...]], list[list[str]]]:
    """Return the commands of Clover: `ready` writes the family, its last word is the family's folder."""

    def commands(python: str, ports: tuple[int, ...]) -> list[list[str]]:
        flags = ["--port", str(ports[0]), "--carbon", "static:300", "--ledger", "off", "--cache-dir", "cache"]
        return [
            [python, "-m", "clover", *ready[:-1]],
            [python, "-m", "clover.serve", ready[-1], *flags],
        ]

    return commands


def litserve(python: str, ports: tuple[int, ...]) -> list[list[str]]:
    """Return the command of LitServe, whose script names its port."""
    code = f"import pathlib; f = pathlib.Path('lit.py'); f.write_text(f.read_text().replace('8000', '{ports[0]}'))"
    return [[python, "-c", code], [python, "lit.py"]]


def bentoml(python: str, ports: tuple[int, ...]) -> list[list[str]]:
    """Return the command of BentoML."""
    return [[python, "-m", "bentoml", "serve", "service:NetService", "--host", "127.0.0.1", "--port", str(ports[0])]]


def torchserve(python: str, ports: tuple[int, ...]) -> list[list[str]]:
    """Return the commands of TorchServe: an archive, and a server of it in the foreground."""
    port, second, third = ports
    settings = TORCHSERVE.format(port=port, second=second, third=third)
    code = f"import pathlib; pathlib.Path('config.properties').write_text({settings!r})"
    tools = Path(python).parent
    archive = "--model-name net --version 1.0 --model-file net.py --serialized-file net.pt --handler handler.py"
    serve = (
        "--start --foreground --model-store . --models net=net.mar --disable-token-auth --ts-config config.properties"
    )
    return [
        [python, "-c", code],
        [str(tools / "torch-model-archiver"), *archive.split()],
        [str(tools / "torchserve"), *serve.split()],
    ]


NEW_FAMILY = (
    "family new net_family --from net:Net --weights net.pt --input image:FP32:1,28,28 --no-profile ./net_family"
)
FRAMEWORKS = {
    "clover": Framework(
        clover(*NEW_FAMILY.split()),
        "/v2/health/ready",
        "/v2/models/net_family/infer",
        oip,
        lambda found: found["outputs"][0]["data"],
    ),
    "triton": Framework(
        clover("family", "import", "repository", "--into", "families", "families/net"),
        "/v2/health/ready",
        "/v2/models/net/infer",
        oip,
        lambda found: found["outputs"][0]["data"],
    ),
    "litserve": Framework(
        litserve,
        "/health",
        "/predict",
        lambda picture: {"image": picture},
        lambda found: found["output"],
        ("litserve",),
    ),
    "bentoml": Framework(
        bentoml, "/readyz", "/predict", lambda picture: {"image": [picture]}, lambda found: found[0], ("bentoml",)
    ),
    "torchserve": Framework(
        torchserve,
        "/ping",
        "/predictions/net",
        lambda picture: {"image": picture},
        lambda found: found,
        ("torchserve", "torch-model-archiver"),
    ),
}


def environment(name: str) -> str:
    """Return the interpreter of a framework's environment, made if it is missing, with this one's torch."""
    packages = FRAMEWORKS[name].packages
    if not packages:
        return sys.executable
    folder = ENVIRONMENTS / name
    python = folder / "bin" / "python"
    if not (folder / ".ready").exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", *packages], check=True)
        asked = [str(python), "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])"]
        where = subprocess.run(asked, check=True, capture_output=True, text=True).stdout.strip()
        (Path(where) / "zz-clover.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
        (folder / ".ready").touch()
    return str(python)


def asked(url: str, body: Any = None) -> Any:
    """Return the JSON of an answer, or its text; OSError if there is none, or it is an error."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        text = answer.read().decode()
    try:
        return json.loads(text)
    except ValueError:
        return text


def until_answered(process: subprocess.Popen[bytes], url: str, body: Any = None) -> Any:
    """Return the first answer, asking again while there is none.  Raises RuntimeError after `START_S`."""
    until = time.monotonic() + START_S
    while True:
        try:
            return asked(url, body)
        except OSError as error:
            if process.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"{url} does not answer: {error}") from error
            time.sleep(1.0)


def tried(name: str, python: str, folder: Path) -> float:
    """Return the largest difference between what a framework answers and the truth."""
    framework = FRAMEWORKS[name]
    known = json.loads((folder / "truth.json").read_text())
    ports = free_ports(3)
    own = {"PYTHONPATH": f"{folder}:{ROOT}", "BENTOML_DO_NOT_TRACK": "True", "BENTOML_HOME": str(folder / "bentoml")}
    environ = {**os.environ, **own, "PATH": f"{Path(python).parent}:{os.environ['PATH']}"}
    *ready, serve = framework.commands(python, ports)
    with (folder / f"{name}.log").open("wb") as log:
        for command in ready:
            subprocess.run(command, cwd=folder, env=environ, stdout=log, stderr=log, check=True)
        process = subprocess.Popen(serve, cwd=folder, env=environ, stdout=log, stderr=log, start_new_session=True)
        try:
            address = f"http://127.0.0.1:{ports[0]}"
            until_answered(process, address + framework.health)
            found = framework.answer(
                until_answered(process, address + framework.path, framework.body(known["picture"]))
            )
        finally:
            end(process)
    return max(abs(float(one) - float(other)) for one, other in zip(found, known["truth"], strict=True))


def main() -> int:
    """Try each; return 1 if one does not answer as the model does."""
    parser = argparse.ArgumentParser(prog="python -m tests.moving", description=__doc__)
    parser.add_argument("framework", nargs="*", help=f"{', '.join(FRAMEWORKS)}; NAME=PYTHON names an interpreter")
    chosen = dict(one.partition("=")[::2] for one in parser.parse_args().framework or FRAMEWORKS)
    if unknown := chosen.keys() - FRAMEWORKS.keys():
        parser.error(f"not one of {', '.join(FRAMEWORKS)}: {', '.join(sorted(unknown))}")
    failed = 0
    for name, given in chosen.items():
        with tempfile.TemporaryDirectory(prefix="clover-moving-") as place:
            folder = Path(place)
            for file, text in files_of(ROOT / "docs" / "bring-your-own.md").items():
                (folder / file).write_text(text)
            subprocess.run([sys.executable, "-c", MODEL], cwd=folder, check=True)
            (folder / "config.pbtxt").rename(folder / "repository" / "net" / "config.pbtxt")
            try:
                off = tried(name, given or environment(name), folder)
            except (OSError, RuntimeError, ValueError, LookupError, TypeError, subprocess.CalledProcessError) as error:
                log = folder / f"{name}.log"
                print(f"{name}: FAILED: {error}\n{log.read_text()[-3000:] if log.exists() else ''}", flush=True)
                failed += 1
                continue
            print(f"{name}: {'ok' if off < 1e-5 else 'FAILED'}, off by at most {off:.1g}", flush=True)
            failed += off >= 1e-5
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
