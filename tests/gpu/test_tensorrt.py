"""Engines on the GPU they are for: built, compared, refused elsewhere, and swapped under load."""

from __future__ import annotations

import asyncio
import importlib.util
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec
import numpy as np
import pytest

import clover
from clover import backends, families
from clover.backends import tensorrt as backend_module
from clover.errors import CloverError

from .conftest import ROOT, Slice, act
from .test_cuda import check, in_precision, on_gpu

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(1800), pytest.mark.usefixtures("tensorrt")]


def facts() -> ModuleType:
    """What the unit tests hold torch-tensorrt to."""
    path = ROOT / "tests" / "support" / "torch_tensorrt_facts.py"
    spec = importlib.util.spec_from_file_location("facts", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def record_of(folder: Path) -> backend_module.EngineRecord:
    return msgspec.json.decode((folder / backend_module.ENGINE).read_bytes(), type=backend_module.EngineRecord)


def test_the_library_takes_what_is_asked_of_it(slice_: Slice) -> None:
    found, known = act("signatures", slice_.visible), facts().PARAMETERS
    asked = {
        "dynamo.compile": {*backend_module.compile_settings("fp32", Path("x")), "exported_program", "arg_inputs"},
        "save": {"module", "file_path", "output_format", "arg_inputs", "dynamic_shapes"},
        "load": {"file_path"},
    }
    for name, parameters in asked.items():
        assert parameters <= set(found[name]), name
        assert parameters <= known[name] | {"module", "file_path"}, name


@pytest.mark.parametrize("precision", families.PRECISIONS)
@pytest.mark.parametrize("name", ["tiny", "xlarge"])
def test_an_engine_is_built_and_agrees(slice_: Slice, tmp_path: Path, name: str, precision: str) -> None:
    spec, variant = in_precision(name, precision)
    folder = backends.artifact_dir(tmp_path, spec, variant, "tensorrt", 1, target=slice_.target)
    asyncio.run(backends.compile_in_background(spec, variant, "tensorrt", folder, target=slice_.target))
    record = record_of(folder)
    assert record.difference <= 1.0
    assert record.device.startswith(slice_.target.gpu)
    made, said = on_gpu(slice_, spec, variant, "tensorrt", folder, tmp_path)
    assert said["device"] == record.device
    assert "torch_tensorrt" not in said["imported"], "a worker needs TensorRT's runtime alone"
    assert said["recorded"], "see the log: its launches could not be recorded"
    assert check(spec, variant, made) <= 1.0


def test_one_batch_size_is_replayed(slice_: Slice, tmp_path: Path) -> None:
    spec, variant = in_precision("large", "fp16")
    spec = families.load_family(msgspec.structs.replace(spec, max_batch=1, digest=""))
    folder = backends.artifact_dir(tmp_path, spec, variant, "tensorrt", 1, target=slice_.target)
    asyncio.run(backends.compile_in_background(spec, variant, "tensorrt", folder, target=slice_.target))
    made, _ = on_gpu(slice_, spec, variant, "tensorrt", folder, tmp_path)
    assert check(spec, variant, made) <= 1.0


def test_an_engine_of_another_slice_is_refused(slice_: Slice, tmp_path: Path) -> None:
    spec, variant = in_precision("tiny", "fp32")
    folder = backends.artifact_dir(tmp_path, spec, variant, "tensorrt", 1, target=slice_.target)
    asyncio.run(backends.compile_in_background(spec, variant, "tensorrt", folder, target=slice_.target))
    record = record_of(folder)
    other = msgspec.structs.replace(record, multiprocessors=record.multiprocessors + 1)
    (folder / backend_module.ENGINE).write_bytes(msgspec.json.encode(other))
    with pytest.raises(AssertionError, match="is not for this worker: it was built for multiprocessors"):
        on_gpu(slice_, spec, variant, "tensorrt", folder, tmp_path)


def test_engines_are_swapped_under_load(box: dict[str, Any], tmp_path: Path) -> None:
    """A server that may choose TensorRT walks through its variants while clients ask: nothing fails."""

    async def main() -> None:
        server = clover.Server(
            "fashion",
            device="nvidia:0",
            backends=("eager", "tensorrt"),
            http=False,
            cache_dir=str(tmp_path),
            carbon="static:300",
            start_s=300.0,
            slo_ms=1000.0,
            accuracy_floor=1.0,
        )
        async with server:
            served, control = server.engine.pick(None), server.engine.control()
            images, labels = families.load_evaluation(served.spec, "held_out")
            sent = right = 0
            ended = False

            async def client(seed: int) -> None:
                nonlocal sent, right
                random = np.random.default_rng(seed)
                while not ended:
                    rows = random.integers(0, len(labels), random.integers(1, 8))
                    answer = await server.ainfer({"image": images[0][rows]})
                    right += int((answer["probabilities"].argmax(axis=1) == labels[rows]).sum())
                    sent += len(rows)

            clients = [asyncio.ensure_future(client(seed)) for seed in range(4)]
            # The slices stay as they are: cutting one GPU anew would stop it for a while.
            profiles = Counter(item.placement.profile for item in served.fleet.ready_assignments())
            for name in ("tiny", "large", "xlarge", "small"):
                counts = {f"{name}@{profile}": count for profile, count in profiles.items()}
                said = await control.command("pin", {"configuration": counts, "force": True}, "a test")
                assert {item.variant for item in served.fleet.ready_assignments()} == {name}, said
                end_s = time.monotonic() + 2.0
                while time.monotonic() < end_s:
                    assert not any(task.done() for task in clients)
                    await asyncio.sleep(0.05)
            ended = True
            await asyncio.gather(*clients)
            assert set(served.traffic.codes) == {200}
            assert served.traffic.lost_workers == 0
            assert sent > 100
            assert right / sent > 0.8

    compile_all(tmp_path)
    asyncio.run(main())


def compile_all(cache: Path) -> None:
    """What `python -m clover profile` does with these flags, as a user would."""
    flags = ["--quick", "--compile", "--backends", "eager,tensorrt", "--device", "nvidia:0", "--cache-dir", str(cache)]
    done = subprocess.run(
        [sys.executable, "-m", "clover", "profile", "fashion", "--carbon", "static:300", *flags],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=1500,
        check=False,
    )
    if done.returncode:
        raise CloverError(done.stderr[-2000:])
    assert "tensorrt" in done.stdout
