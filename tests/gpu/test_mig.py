"""MIG on a GPU that is in MIG mode: listed, applied, served.  The mode is never changed, nor are instances of
others; what these tests made is gone afterwards."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

import clover
from clover import devices, families
from clover.config import WorkersConfig
from clover.devices.mig import MigDevice
from clover.errors import CloverError

from .conftest import ROOT

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(600)]


def mig(cache: Path, *words: str, code: int = 0) -> str:
    """The output of `python -m clover mig ...`."""
    command = [sys.executable, "-m", "clover", "mig", words[0], "--cache-dir", str(cache), *words[1:]]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def gpu(box: dict[str, Any], tmp_path: Path) -> Iterator[dict[str, Any]]:
    """GPU 0 as `mig list` shows it: in MIG mode, empty, and ours to cut; empty again afterwards."""
    if box["gpus"][0]["mig"] is None:
        pytest.skip(f"needs a GPU with MIG: {box['gpus'][0]['name']} has none")
    if not box["gpus"][0]["mig"]:
        pytest.skip("needs GPU 0 in MIG mode: `nvidia-smi -i 0 -mig 1`, by somebody who may; tests do not")
    cache = tmp_path / "cache"
    found = json.loads(mig(cache, "list", "--json"))["gpus"][0]
    if found["instances"]:
        pytest.skip("needs GPU 0 without instances: those that are there are not ours")
    try:
        probe = devices.build(WorkersConfig(device="nvidia:0"), cache)
    except CloverError as error:
        pytest.skip(f"needs GPU 0 for itself: {error}")
    try:
        place = min((place for layout in probe["gpu0"].shape().layouts for place in layout), key=lambda p: p.slices)
        try:
            asyncio.run(probe["gpu0"].create(place))
        except CloverError as error:
            pytest.skip(f"needs the right to make instances (root, or the capability mig/config): {error}")
        asyncio.run(probe["gpu0"].destroy(place))
    finally:
        devices.close(probe)
    yield found
    (tmp_path / "none.toml").write_text("[configs.none]\ndevices = [0]\nprofiles = []\n")
    mig(cache, "apply", str(tmp_path / "none.toml"), "--yes")
    assert json.loads(mig(cache, "list", "--json"))["gpus"][0]["instances"] == []


def finest_and_mixed(cache: Path) -> tuple[list[str], list[str]]:
    """Two layouts of this GPU, as "profile@start": the one with most instances, and one of several profiles."""
    found = devices.build(WorkersConfig(device="nvidia:0"), cache, exclusive=False)
    try:
        layouts = found["gpu0"].shape().layouts
    finally:
        devices.close(found)
    words = [[f"{place.profile}@{place.start}" for place in layout] for layout in layouts]
    finest = max(words, key=len)
    mixed = max(words, key=lambda layout: (len({word.split("@")[0] for word in layout}), -len(layout)))
    return finest, mixed


def test_layouts_are_applied_and_asserted(gpu: dict[str, Any], tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    finest, mixed = finest_and_mixed(cache)
    for name, layout in (("finest", finest), ("mixed", mixed)):
        file = tmp_path / f"{name}.toml"
        file.write_text(f"[configs.{name}]\ndevices = [0]\nprofiles = {json.dumps(layout)}\n")
        mig(cache, "assert", str(file), code=1)
        mig(cache, "apply", str(file), "--yes")
        mig(cache, "assert", str(file))
        shown = json.loads(mig(cache, "list", "--json"))["gpus"][0]["instances"]
        assert len(shown) == len(layout)
        assert all(item["uuid"].startswith("MIG-") for item in shown)


def test_fashion_is_served_on_slices(gpu: dict[str, Any], tmp_path: Path) -> None:
    """One worker a slice, each on its own; the layout changes under load.  One GPU that is cut anew as a whole cannot
    serve meanwhile, and says so (503) while it changes, and at no other time.  One variant alone: to measure five on
    every profile takes a quarter of an hour."""
    cache = tmp_path / "cache"
    fashion = families.load_family("fashion")
    small = msgspec.structs.replace(fashion, variants=(fashion.variant("small"),), digest="")

    async def main() -> None:
        server = clover.Server(
            families.load_family(small),
            device="nvidia:0",
            backends=("eager",),
            http=False,
            cache_dir=str(cache),
            carbon="static:300",
            start_s=300.0,
            slo_ms=1000.0,
            accuracy_floor=1.0,
            allow_capacity_loss=True,
        )
        async with server:
            served, control = server.engine.pick(None), server.engine.control()
            (images,), labels = families.load_evaluation(served.spec, "held_out")
            device = server.engine.devices["gpu0"]
            assert isinstance(device, MigDevice)
            sent = right = 0
            changing = ended = False

            async def client(seed: int) -> None:
                nonlocal sent, right
                random = np.random.default_rng(seed)
                while not ended:
                    rows = random.integers(0, len(labels), 4)
                    try:
                        answer = await server.ainfer({"image": images[rows]}, timeout_ms=20_000)
                    except clover.Unavailable:
                        assert changing
                        await asyncio.sleep(0.05)
                        continue
                    right += int((answer["probabilities"].argmax(axis=1) == labels[rows]).sum())
                    sent += len(rows)

            clients = [asyncio.ensure_future(client(seed)) for seed in range(4)]
            layouts = device.shape().layouts
            for layout in (max(layouts, key=len), min(layouts, key=len)):
                counts: dict[str, int] = {}
                for place in layout:
                    counts[f"small@{place.profile}"] = counts.get(f"small@{place.profile}", 0) + 1
                changing = True
                said = await control.command("pin", {"configuration": counts, "force": True}, "a test")
                running = served.fleet.ready_assignments()
                assert len(running) == len(layout), said
                assert len({device.visible(item.placement) for item in running}) == len(layout)
                await asyncio.sleep(0.1)  # who was refused last has heard so by now
                changing, before = False, sent
                await asyncio.sleep(1.0)
                assert not any(task.done() for task in clients)
                assert sent > before
            ended = True
            await asyncio.gather(*clients)
            assert set(served.traffic.codes) <= {200, 503}
            assert served.traffic.lost_workers == 0
            assert right / sent > 0.75

    asyncio.run(main())
