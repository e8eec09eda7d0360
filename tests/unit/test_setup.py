"""Set-up does not fetch gigabytes for CUDA on a machine without a GPU, and leaves a choice of its user's alone."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "packaging" / "torch_build.py"

# In the place of a virtual environment's python: notes what pip is called with, and has no packages.
FAKE = """#!/bin/sh
case "$*" in
*"pip install"*) printf '%s\\n' "$*" >>"$NOTES"; case "$*" in *"$FAILS"*) exit 1 ;; esac ;;
*"pip --disable-pip-version-check config list"*) printf '%s' "$SETTINGS" ;;
*) exec "$REAL" -S -c 'import runpy, sys
sys.executable, sys.argv = sys.argv[1], sys.argv[2:]
exec(sys.stdin.read()) if sys.argv[0] == "-" else runpy.run_path(sys.argv[0], run_name="__main__")' "$0" "$@" ;;
esac
"""


@pytest.fixture(scope="module")
def script() -> dict[str, Any]:
    return runpy.run_path(str(SCRIPT))


@pytest.mark.parametrize(
    ("wish", "has", "driver", "settings", "cpu", "why"),
    [
        ("", "", "", "", True, "no NVIDIA GPU"),
        ("", "2.13.0", "", "", False, "2.13.0 is installed and stays"),
        ("cpu", "2.13.0", "", "", False, "stays"),
        ("", "2.13.0+cpu", "", "", True, "stays"),  # torchvision has to be of the same build
        ("", "2.13.0+cpu", "", "global.find-links='/wheels'\n", False, "stays"),
        ("", "", "dev/nvidiactl", "", False, "/dev/nvidiactl shows a GPU"),
        ("", "", "dev/dxg", "", False, "/dev/dxg shows a GPU"),
        ("cpu", "", "dev/nvidiactl", "", True, "TORCH=cpu"),
        ("cuda", "", "", "", False, "TORCH=cuda"),
        ("", "", "", "global.timeout='60'\nglobal.cert='/x=.index-url='\n", True, "no NVIDIA GPU"),
        ("", "", "", "global.constraint='/c.txt'\n", False, "configured to find it (constraint)"),
        ("", "", "", "global.timeout='60'\n:env:.find-links='/wheels'\n", False, "(find-links)"),
        ("", "", "", "global.index-url='https://mirror'\n", False, "(index-url)"),
        ("cpu", "", "", "global.index-url='https://mirror'\n", True, "TORCH=cpu"),
    ],
)
def test_which_build_of_torch(
    script: dict[str, Any], tmp_path: Path, wish: str, has: str, driver: str, settings: str, cpu: bool, why: str
) -> None:
    if driver:
        (tmp_path / driver).parent.mkdir(parents=True)
        (tmp_path / driver).touch()
    chosen, reason = script["decide"](wish, has, tmp_path, lambda: settings)
    assert chosen is cpu
    assert why in reason


def test_an_unknown_wish_is_refused(script: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="neither cpu nor cuda"):
        script["decide"]("rocm", "", tmp_path, str)


def set_up(tmp_path: Path, **variables: str) -> tuple[subprocess.CompletedProcess[str], list[str]]:
    """Run setup.sh with a fake environment; return what it said, and the calls of pip."""
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.write_text(FAKE)
    python.chmod(0o755)
    notes = tmp_path / "notes"
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "TORCH"))}
    environ |= {"REAL": sys.executable, "NOTES": str(notes), "FAILS": "none of these", "SETTINGS": ""} | variables
    done = subprocess.run(
        ["sh", "setup.sh", str(tmp_path), "packages", "onnx,models"],
        cwd=ROOT, env=environ, capture_output=True, text=True,
    )  # fmt: skip
    return done, notes.read_text().splitlines() if notes.exists() else []


def test_a_cpu_build_comes_first_and_alone_from_its_index(tmp_path: Path) -> None:
    done, calls = set_up(tmp_path, TORCH="cpu", TORCH_INDEX="https://index.test/cpu")
    assert done.returncode == 0, done.stderr
    first, rest = calls
    assert "--index-url https://index.test/cpu torch>=" in first
    assert " torchvision>=" in first
    assert "numpy" not in first
    assert "index" not in rest
    assert "numpy>=" in rest
    assert "onnxruntime>=" in rest
    assert "TORCH=cpu" in done.stderr


def test_otherwise_pip_takes_all_from_one_place(tmp_path: Path) -> None:
    done, calls = set_up(tmp_path, TORCH="cuda")
    assert done.returncode == 0, done.stderr
    assert len(calls) == 1
    assert "index" not in calls[0]


def test_without_the_index_it_stops_and_says_what_to_do(tmp_path: Path) -> None:
    done, calls = set_up(tmp_path, TORCH="cpu", FAILS="--index-url")
    assert done.returncode == 1
    assert len(calls) == 1, "no quiet fall back to the large build"
    assert "TORCH=cuda" in done.stderr


def test_a_wrong_wish_stops_set_up(tmp_path: Path) -> None:
    done, calls = set_up(tmp_path, TORCH="gpu")
    assert done.returncode != 0
    assert not calls
    assert "neither cpu nor cuda" in done.stderr


def test_the_pages_examples_run_after_make_serve(tmp_path: Path) -> None:
    command = ["make", "--dry-run", f"VENV={tmp_path}", f"{tmp_path}/.serve"]
    printed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    extras = next(line.split()[-1] for line in printed.splitlines() if " packages " in line).split(",")
    # clover.client, which the pages for beginners import; families of ONNX files; the dashboard's charts.
    assert {"client", "onnx", "dashboard"} <= set(extras)
