"""What there is to test on.  Every fixture skips with the reason where its part is missing."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from clover import backends, devices
from clover.backends import targets
from clover.backends.environment import child_environment
from clover.config import WorkersConfig
from clover.errors import CloverError
from clover.interfaces import Device
from clover.types import Placement

ROOT = Path(__file__).parents[2]
ACT_S = 300.0
ORDER = (
    "test_starting",
    "test_cuda",
    "test_serving",
    "test_energy",
    "test_hot_path",
    "test_tensorrt",
    "test_mig",
)
"""What could stop everything else comes first; what takes longest, or needs most, last."""

FIGURES: dict[str, Any] = {}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the files of this folder in `ORDER`."""
    here = Path(__file__).parent
    places = [index for index, item in enumerate(items) if item.path.parent == here]
    ranked = sorted((items[index] for index in places), key=lambda item: ORDER.index(item.path.stem))
    for index, item in zip(places, ranked, strict=True):
        items[index] = item


def pytest_sessionfinish() -> None:
    """Write what was measured, if anything was."""
    if FIGURES:
        path = Path(os.environ.get("CLOVER_GPU_FIGURES", ROOT / "build" / "gpu-figures.json"))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(FIGURES, indent=1) + "\n", encoding="utf-8")
        print(f"\nfigures: {path}")


@pytest.fixture
def figures(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Where a test notes what it measured; all of it is one JSON file when the run ends."""
    noted: dict[str, Any] = FIGURES.setdefault(request.node.name, {})
    return noted


def act(do: str, visible: str = "", **asked: Any) -> dict[str, Any]:
    """What `tests.gpu.on_gpu` answers, in a process that sees `visible` alone.  AssertionError with its last words."""
    environment = child_environment() | ({"CUDA_VISIBLE_DEVICES": visible} if visible else {})
    process = subprocess.run(
        [sys.executable, "-m", "tests.gpu.on_gpu"],
        input=json.dumps({"do": do, "visible": visible, **asked}),
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=ACT_S,
        check=False,
    )
    assert process.returncode == 0, process.stderr[-4000:]
    found: dict[str, Any] = json.loads(process.stdout.splitlines()[-1])
    return found


@pytest.fixture(scope="session")
def box() -> dict[str, Any]:
    """A machine with a driver, NVML, and a torch that has CUDA."""
    if not targets.driver_version():
        pytest.skip("needs an NVIDIA GPU: no driver is loaded here")
    try:
        found = act("facts")
    except AssertionError as error:
        pytest.skip(f"needs NVML and torch: {str(error)[-300:]}")
    if not found["gpus"]:
        pytest.skip("needs an NVIDIA GPU: NVML sees none")
    if not found["cuda"]:
        pytest.skip(f"needs a torch build with CUDA: torch {found['torch']} has none")
    if not found["usable"] and not any(gpu["mig"] for gpu in found["gpus"]):
        pytest.skip(f"needs a GPU that torch {found['torch']} can use (CUDA {found['cuda']}): see nvidia-smi")
    FIGURES["box"] = found
    return found


@dataclass
class Slice:
    """A placement that stands: a whole GPU without MIG, else an instance of the smallest profile, made for the test."""

    device: Device
    placement: Placement
    visible: str
    target: backends.Target


@pytest.fixture
def slice_(box: dict[str, Any], tmp_path: Path) -> Iterator[Slice]:
    """A place to run on, through the production devices; gone afterwards."""
    try:
        found = devices.build(WorkersConfig(device="nvidia:0"), tmp_path / "devices")
    except CloverError as error:
        pytest.skip(f"needs GPU 0 for itself: {error}")
    device = found["gpu0"]
    try:
        layouts = device.shape().layouts
        if not layouts:
            pytest.skip("needs room on GPU 0: instances of others take all of it")
        placement = min(
            (place for layout in layouts for place in layout), key=lambda place: (place.slices, place.start)
        )
        try:
            asyncio.run(device.create(placement))
        except CloverError as error:
            pytest.skip(f"needs the right to make MIG instances: {error}")
        try:
            visible = device.visible(placement)
            yield Slice(device, placement, visible, backends.target_of(device, placement.profile, visible))
        finally:
            asyncio.run(device.destroy(placement))
    finally:
        devices.close(found)


@pytest.fixture
def tensorrt(box: dict[str, Any]) -> None:
    """The extra."""
    if reason := backends.get("tensorrt").available():
        pytest.skip(f"needs the extra tensorrt: {reason}")
