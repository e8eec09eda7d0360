"""The folders of docs/examples do what their first lines say, typed as it stands there."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.servers import ROOT

pytestmark = pytest.mark.slow

EXAMPLES = ROOT / "docs" / "examples"
_COMMAND = re.compile(r"^#? {4,}\$ ((?:.*\\\n)*.*)$", re.MULTILINE)
# Runs `clover profile` with an effort that suffices to tell a simulation from what is a hundred times cheaper.
SHORT = """\
import sys, clover.cli.profile as cli
from dataclasses import replace
cli.QUICK = replace(cli.QUICK, samples=5, least_s=0.01, most_s=0.1, base_s=0.2, rounds=1)
sys.exit(cli.main(sys.argv[1:]))"""
Example = Callable[[str, str], "Shell"]


def commands(text: str) -> list[str]:
    """The commands that a file's first lines have, without their comments."""
    return [re.sub(r"  #.*", "", found).strip() for found in _COMMAND.findall(text)]


class Shell:
    """Types the commands of an example in a copy of its folder, with a home and a port of its own."""

    def __init__(self, folder: Path, page: str, home: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = str(free.getsockname()[1])
        self.commands = commands((folder / page).read_text(encoding="utf-8"))
        self.folder = folder
        self.environ = {name: value for name, value in os.environ.items() if not name.startswith(("CLOVER_", "XDG_"))}
        self.environ |= {"HOME": str(home), "CLOVER_URL": f"http://127.0.0.1:{self.port}", "OMP_NUM_THREADS": "1"}
        self.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])

    def line(self, starts: str, **changes: str) -> str:
        """The command that starts so, with `changes`."""
        (line,) = (command for command in self.commands if command.startswith(starts))
        for old, new in changes.items():
            assert old in line
            line = line.replace(old, new)
        return re.sub(r"^python ", f"'{sys.executable}' ", line)

    def type(self, starts: str, **changes: str) -> str:
        """Run a command to its end; return what it prints."""
        done = subprocess.run(
            ["bash", "-o", "pipefail", "-c", self.line(starts, **changes)],
            cwd=self.folder, env=self.environ, text=True, capture_output=True, timeout=100,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    @contextlib.contextmanager
    def running(self, starts: str, ready: str, settings: dict[str, str], **changes: str) -> Iterator[None]:
        """Leave a command running until it answers at the path `ready`, and end it after the block."""
        log = self.folder / "log"
        with log.open("w") as out:
            server = subprocess.Popen(
                ["bash", "-c", f"exec {self.line(starts, **changes)}"],
                cwd=self.folder, env=self.environ | settings, stdout=out, stderr=out,
            )  # fmt: skip
        try:
            end_s = time.monotonic() + 60.0
            while True:
                assert server.poll() is None, log.read_text()
                assert time.monotonic() < end_s, log.read_text()
                with contextlib.suppress(OSError):
                    urllib.request.urlopen(self.environ["CLOVER_URL"] + ready, timeout=5.0).close()
                    break
                time.sleep(0.05)
            yield
        finally:
            server.terminate()
            assert server.wait(60.0) is not None

    def serving(self, **settings: str) -> contextlib.AbstractContextManager[None]:
        return self.running("python -m clover serve", "/v2/health/ready", {"CLOVER_PORT": self.port, **settings})


@pytest.fixture
def example(tmp_path: Path) -> Example:
    def copy(name: str, page: str) -> Shell:
        (tmp_path / "home").mkdir()
        shutil.copytree(EXAMPLES / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
        return Shell(tmp_path / name, page, tmp_path / "home")

    return copy


def needs(*modules: str) -> None:
    for module in modules:
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"needs the package {module}")


def test_every_folder_is_listed_and_tried() -> None:
    page = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    for folder in EXAMPLES.iterdir():
        if folder.is_dir():
            assert f"]({folder.name}/" in page
            assert f"\ndef test_{folder.name}(" in Path(__file__).read_text(encoding="utf-8")


def test_classifier(example: Example) -> None:
    needs("PIL")
    shell = example("classifier", "shapes.py")
    shell.type("python shapes.py")
    said = shell.type("python -m clover family", **{"--from shapes:small": "--no-profile --from shapes:small"})
    assert "small, large" in said
    with shell.serving(CLOVER_VARIANT="large"):
        answer = shell.type("python -m clover infer")
    assert re.match(r"cross\t.*\nlarge: .* mJ \(modelled\), .* CO2e", answer)


def test_onnx_files(example: Example) -> None:
    needs("onnx", "onnxruntime")
    shell = example("onnx_files", "make.py")
    shell.type("python make.py")
    shell.type("python -m clover family", **{"--from small": "--no-profile --from small"})
    with shell.serving(CLOVER_VARIANT="large"):
        answer = shell.type("python -m clover infer")
    assert re.match(r"middle\t.*\nlarge: .* mJ \(modelled\), .* CO2e", answer)


def test_cascade(example: Example) -> None:
    shell = example("cascade", "family.toml")
    said = shell.type("python -m clover profile", **{"-m clover profile": f"-c '{SHORT}'"})
    assert re.search(r"committee < -\d.* > simulation", said)
    *figures, receipt = shell.type("python run.py").splitlines()
    (alone, alone_j), (cascade, cascade_j) = (
        [float(number) for number in re.findall(r"([\d.]+)(?:% right| J)", line)] for line in figures
    )
    assert alone == 100.0
    assert 97.0 < cascade <= 100.0
    assert cascade_j < alone_j / 2
    assert re.match(r"Receipt\(.* method='modelled'.* path=\('committee", receipt)


def test_scikit_learn(example: Example) -> None:
    needs("sklearn")
    shell = example("scikit_learn", "family.toml")
    answer, receipt = shell.type("python digits.py").splitlines()
    assert re.fullmatch(r"it is a (\d), and the answer is \1", answer)
    assert receipt.startswith("Receipt(variant='kernel'")


def test_embedder(example: Example) -> None:
    needs("tokenizers", "openai")
    shell = example("embedder", "make.py")
    shell.type("python make.py")
    with shell.serving(CLOVER_STATE_DIR=str(shell.folder / "state")):
        *pages, receipt = shell.type("python ask.py").splitlines()
        waited = shell.type("python batch.py").splitlines()
    assert pages[0].startswith(("exceptions: ", "raise: ", "assert: ")), pages
    assert receipt.startswith('receipt: variant="mean", ')
    assert waited[-4].startswith("completed: "), waited
    assert re.fullmatch(r"\S+: [\d.e-]+ mg CO2e", waited[-1]), waited


def test_fastapi_app(example: Example) -> None:
    needs("fastapi", "uvicorn")
    shell = example("fastapi_app", "app.py")
    with shell.running("python -m uvicorn", "/docs", {}, **{"8000": shell.port}):
        answer = shell.type("head -c 784", **{"8000": shell.port})
    assert re.match(r'\{"label":"[A-Z][^"]+","receipt":\{"variant":"', answer)
