"""A copy of Clover without the folders of the wings serves, and says of what they have that it is not installed."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import orjson
import pytest

import clover
from tests.support.toy_family import TOY
from tests.support.wings import WINGS

PACKAGE = Path(clover.__file__).parent
ROOT = Path(__file__).resolve().parents[2]
# The finder of an editable installation would find what the copy lacks.
ONLY_THE_COPY = """
import sys
sys.meta_path[:] = [finder for finder in sys.meta_path if "__editable__" not in getattr(finder, "__module__", "")]
"""
SETTINGS = ("--port", "0", "--carbon", "static:300", "--backends", "eager", "--energy-meter", "modelled")


@pytest.fixture(scope="module")
def core(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("core")

    def left_out(parent: str, names: list[str]) -> list[str]:
        return ["__pycache__", *(WINGS if Path(parent) == PACKAGE else ())]

    shutil.copytree(PACKAGE, folder / "clover", ignore=left_out)
    shutil.copytree(ROOT / "models" / "fashion", folder / "models" / "fashion", ignore=left_out)
    (folder / "sitecustomize.py").write_text(ONLY_THE_COPY, encoding="utf-8")
    return folder


def environment(core: Path, home: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("CLOVER_", "XDG_"))}
    return kept | {"HOME": str(home), "PYTHONPATH": str(core)}


@contextmanager
def serving(core: Path, home: Path, *words: str) -> Iterator[str]:
    """Run `python -m clover.serve`; yield its address when it is ready, and end it."""
    out, err = home / "out", home / "err"
    with out.open("wb") as prints, err.open("wb") as errors:
        command = [sys.executable, "-m", "clover.serve", *words, *SETTINGS]
        process = subprocess.Popen(command, cwd=core, env=environment(core, home), stdout=prints, stderr=errors)
    try:
        until = time.monotonic() + 60.0
        while (address := re.search(r"at (http://\S+)", out.read_text(encoding="utf-8"))) is None:
            assert process.poll() is None, err.read_text(encoding="utf-8")
            assert time.monotonic() < until, err.read_text(encoding="utf-8")
            time.sleep(0.05)
        yield address[1]
        process.terminate()
        assert process.wait(20) == 0, err.read_text(encoding="utf-8")
    finally:
        process.kill()
        process.wait()


def infer(url: str, family: str, name: str, shape: list[int], data: list[float]) -> int:
    row = {"name": name, "shape": shape, "datatype": "FP32", "data": data}
    request = urllib.request.Request(f"{url}/v2/models/{family}/infer", orjson.dumps({"inputs": [row]}))
    with urllib.request.urlopen(request, timeout=20) as reply:
        return int(reply.status)


@pytest.mark.slow
def test_the_core_serves_and_its_page_says_that_there_is_no_report(core: Path, tmp_path: Path) -> None:
    with serving(core, tmp_path, "fashion", "--variant", "tiny") as url:
        assert infer(url, "fashion", "image", [1, 1, 28, 28], [0.0] * 784) == 200
        with pytest.raises(urllib.error.HTTPError, match="404") as told:
            urllib.request.urlopen(f"{url}/dashboard/report", timeout=20)
        with told.value as answer:
            assert "this installation of Clover is without clover.report" in answer.read().decode()


@pytest.mark.slow
def test_the_core_serves_on_a_mig_slice_of_the_emulator_beside_it(core: Path, toy_cache: Path, tmp_path: Path) -> None:
    both = tmp_path / "both"
    shutil.copytree(core, both)
    shutil.copytree(PACKAGE / "emulation", both / "clover" / "emulation")
    words = ("--device", "emulated:pod-1g.10gb", "--cache-dir", str(toy_cache))
    with serving(both, toy_cache, TOY, *words) as url:
        assert infer(url, "toy", "INPUT0", [1, 4], [1.0, 2.0, 3.0, 4.0]) == 200
    assert "on 1g.10gb" in (toy_cache / "out").read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "wing"),
    [("cluster", "cluster"), ("plan", "research"), ("family new", "importing"), ("report", "report")],
)
def test_a_command_of_a_wing_says_in_a_line_that_it_is_not_installed(
    core: Path, tmp_path: Path, command: str, wing: str
) -> None:
    words = [sys.executable, "-m", "clover", *command.split(), "--help"]
    done = subprocess.run(words, cwd=core, env=environment(core, tmp_path), capture_output=True, text=True, timeout=30)
    assert done.returncode == 2
    assert done.stderr == f"clover: this installation is without clover.{wing}, which has `{command}`\n"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "command"),
    [
        (("serve", "fashion", "--device", "emulated:a100-40gb:1"), "clover"),
        (("mig", "emulate", "a100-40gb:2", "--state", "box.nvml"), "clover mig emulate"),
        (("mig", "list", "--box", __file__), "clover mig list"),
    ],
)
def test_emulated_gpus_are_refused_in_a_line_where_their_wing_is_missing(
    core: Path, tmp_path: Path, words: tuple[str, ...], command: str
) -> None:
    line = [sys.executable, "-m", "clover", *words]
    done = subprocess.run(line, cwd=core, env=environment(core, tmp_path), capture_output=True, text=True, timeout=30)
    assert done.returncode == 2
    assert done.stderr == f"{command}: this installation is without clover.emulation, which has emulated GPUs\n"
