"""What the tests do on a GPU, in processes of their own: a process that used CUDA keeps its slice from being removed.

    python -m tests.gpu.on_gpu     reads one JSON object from standard input, prints one

CUDA_VISIBLE_DEVICES is set by the caller.  Nothing of CUDA is touched by the test process itself.
"""

from __future__ import annotations

import inspect
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from clover import backends
from clover.backends.artifacts import CompileOrder
from clover.types import VariantSpec


def loaded(order: CompileOrder, variant: VariantSpec, device: str = "cuda", *, check: bool = True) -> Any:
    """`variant` with the backend of `order` and its launches recorded, as a worker has it."""
    run: Any = backends.get(order.backend).load(order.family, variant, Path(order.folder), 1, device)
    if hasattr(run, "record_launches"):
        run.record_launches(check=check)
    return run


def facts(_: dict[str, Any]) -> dict[str, Any]:
    """What NVML and torch see."""
    import pynvml
    import torch

    found: dict[str, Any] = {
        "torch": torch.__version__,
        "cuda": torch.version.cuda or "",
        "usable": torch.cuda.is_available(),
        "gpus": [],
    }
    pynvml.nvmlInit()
    for index in range(pynvml.nvmlDeviceGetCount()):
        handle = pynvml.nvmlDeviceGetHandleByIndex(index)
        gpu: dict[str, Any] = {
            "name": pynvml.nvmlDeviceGetName(handle),
            "uuid": pynvml.nvmlDeviceGetUUID(handle),
            "mig": None,
            "counter": "",
        }
        try:
            gpu["mig"] = bool(pynvml.nvmlDeviceGetMigMode(handle)[0])
        except pynvml.NVMLError as error:
            gpu["no_mig"] = str(error)
        try:
            pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
        except pynvml.NVMLError as error:
            gpu["counter"] = str(error)
        found["gpus"].append(gpu)
    return found


def answers(asked: dict[str, Any]) -> dict[str, Any]:
    """Load a variant as a worker would, run `inputs` in batches of each of `sizes`, write the answers to `out`."""
    order = msgspec.convert(asked["order"], CompileOrder)
    with np.load(asked["inputs"]) as given:
        rows = [given[name] for name in sorted(given.files)]
    variant = order.family.variant(order.variant)
    began_s = time.monotonic()
    device = backends.device_for(asked["visible"])
    run = loaded(order, variant, device, check=asked.get("check", True))
    load_ms = (time.monotonic() - began_s) * 1e3
    found: dict[str, Any] = {}
    ms: dict[str, float] = {}
    for size in asked["sizes"]:
        batch = [array[:size] for array in rows]
        for _ in range(10):
            run(batch)
        times = []
        for _ in range(50):
            start_ns = time.perf_counter_ns()
            made = run(batch)
            times.append((time.perf_counter_ns() - start_ns) / 1e6)
        ms[str(size)] = float(np.median(times))
        found |= {f"{size}.{index}": array.copy() for index, array in enumerate(made)}
    np.savez(asked["out"], **found)
    import torch

    return {
        "device": torch.cuda.get_device_name(0) if device == "cuda" else device,
        "recorded": list(getattr(run, "recorded", ())),
        "imported": sorted({"torch_tensorrt", "tensorrt"} & {*sys.modules}),
        "load_ms": load_ms,
        "replay_fault": getattr(run, "replay_fault", None),
        "ms": ms,
    }


def burn(asked: dict[str, Any]) -> dict[str, Any]:
    """Multiply matrices for a while, with pauses: power that goes up and down.  With `duty`, busy for that part of each
    tenth of a second."""
    import torch

    size = asked.get("size", 4096)
    a = torch.randn(size, size, device="cuda")
    until_s = time.monotonic() + asked["seconds"]
    count = 0
    duty = asked.get("duty")
    while time.monotonic() < until_s:
        began_s = time.monotonic()
        for _ in range(20 if duty is None else 2):
            a = (a @ a).tanh()
            count += 1
        torch.cuda.synchronize()
        if duty is not None:
            time.sleep((time.monotonic() - began_s) * (1.0 / duty - 1.0))
        elif count % 200 == 0:
            time.sleep(0.5)
    return {"products": count}


def fill(asked: dict[str, Any]) -> dict[str, Any]:
    """Hold all of the device's memory but `leave` bytes for so many `seconds`; say first that it is held."""
    import torch

    free, total = torch.cuda.mem_get_info()
    held = torch.empty(max(0, free - asked["leave"]), dtype=torch.uint8, device="cuda")
    said = {"held": held.numel(), "of": total}
    print(json.dumps(said), flush=True)
    time.sleep(asked["seconds"])
    return said


def copies(asked: dict[str, Any]) -> dict[str, Any]:
    """GB/s of copies to the device, from it and on it, from page-locked memory and from other."""
    import torch

    size = asked["mib"] << 20
    there, other = (torch.empty(size, dtype=torch.uint8, device="cuda") for _ in range(2))
    found = {}
    for name, pinned in (("pageable", False), ("pinned", True)):
        here = torch.empty(size, dtype=torch.uint8, pin_memory=pinned)
        for way, to, source in ((f"h2d_{name}", there, here), (f"d2h_{name}", here, there), ("d2d", other, there)):
            to.copy_(source)
            torch.cuda.synchronize()
            began_s = time.monotonic()
            for _ in range(10):
                to.copy_(source, non_blocking=True)
            torch.cuda.synchronize()
            found[f"{way}_gb_per_s"] = 10 * size / (time.monotonic() - began_s) / 1e9
    return found


def pinned(asked: dict[str, Any]) -> dict[str, Any]:
    """Whether the driver page-locks a memfd as a worker's slab is, whether torch takes it for page-locked, and whether
    torch still works after memory was refused: by the driver's call, and by the runtime's (`poisoned`)."""
    import torch

    from clover.runtime.memory.slab import map_shared, shared_memory
    from clover.worker.cuda_driver import CudaDriver, register

    torch.zeros(1, device="cuda")
    size = 1 << 22
    mapped = map_shared(shared_memory("clover-test", size), size)
    array = np.frombuffer(mapped, np.uint8)
    registered, refused = register(CudaDriver(), [array])
    pinned = torch.from_numpy(array).is_pinned()
    _, again = register(CudaDriver(), [array])  # it is registered already
    works = float((torch.ones(1, device="cuda") + 1).cpu()[0]) == 2.0
    torch.cuda.cudart().cudaHostRegister(array.ctypes.data, array.nbytes, 0)  # type: ignore[no-untyped-call]
    try:
        torch.ones(1, device="cuda") + 1
        poisoned = ""
    except RuntimeError as error:
        poisoned = str(error).splitlines()[0]
    return {
        "registered": registered,
        "refused": sorted(refused),
        "size": size,
        "pinned": pinned,
        "again": sorted(again),
        "works": works,
        "poisoned": poisoned,
    }


def context(asked: dict[str, Any]) -> dict[str, Any]:
    """Hold a context in which nothing runs for so many `seconds`; say first that it is there, and what it took in time
    and memory."""
    began_s = time.monotonic()
    import torch

    imported_s = time.monotonic()
    free_before, total = torch.cuda.mem_get_info()
    made_s = time.monotonic()
    a = torch.randn(256, 256, device="cuda")
    (a @ a).sum().item()
    free_after, _ = torch.cuda.mem_get_info()
    said = {
        "import_ms": (imported_s - began_s) * 1e3,
        "context_ms": (made_s - imported_s) * 1e3,
        "cublas_ms": (time.monotonic() - made_s) * 1e3,
        "cublas_mib": (free_before - free_after) / 2**20,
        "context_mib": (total - free_after) / 2**20,  # and what others hold
    }
    print(json.dumps(said), flush=True)
    time.sleep(asked["seconds"])
    return said


def hot_path(asked: dict[str, Any]) -> dict[str, Any]:
    """Microseconds of a batch, median of `rounds`: of a worker's call with and without recorded launches, of those
    alone (`bare graph`), and of the module alone over inputs that are on the device already."""
    import torch

    from clover.backends import parity
    from clover.backends.tensors import load_module, with_casts

    order = msgspec.convert(asked["order"], CompileOrder)
    variant = order.family.variant(order.variant)
    generator = np.random.default_rng(1)

    rounds = asked.get("rounds", 200)

    def timed(call: Any) -> float:
        for _ in range(min(20, rounds)):
            call()
        times = []
        for _ in range(rounds):
            start_ns = time.perf_counter_ns()
            call()
            times.append((time.perf_counter_ns() - start_ns) / 1e3)
        return float(np.median(times))

    found: dict[str, Any] = {}
    for backend in asked["backends"]:
        for graphs in (True, False):
            changed = msgspec.structs.replace(variant, parameters=variant.parameters | {"cuda_graphs": graphs})
            run = loaded(msgspec.structs.replace(order, backend=backend), changed)
            for size in asked["sizes"]:
                rows = [parity.made_up(one, size, generator) for one in order.family.inputs]
                found[f"{backend}, {'replayed' if graphs else 'launched'}, {size} rows"] = timed(
                    lambda run=run, rows=rows: run(rows)
                )
                if graphs and size in run.recorded:

                    def replay(recording: Any = run._recordings[size]) -> None:
                        recording.replay()
                        torch.cuda.synchronize()

                    found[f"{backend}, bare graph, {size} rows"] = timed(replay)
    module = with_casts(load_module(order.family, variant, "cuda"), order.family, variant)
    with torch.inference_mode():
        for size in asked["sizes"]:
            made = [parity.made_up(one, size, generator) for one in order.family.inputs]
            there = [torch.from_numpy(array).to("cuda") for array in made]

            def bare(there: Any = there) -> None:
                module(*there)
                torch.cuda.synchronize()

            found[f"the module alone, {size} rows"] = timed(bare)
    return found


def overlapped(asked: dict[str, Any]) -> dict[str, Any]:
    """Microseconds of a batch in a row of 200: one after another, and with two in flight; how many answers differ."""
    from clover.backends import parity

    order = msgspec.convert(asked["order"], CompileOrder)
    variant = order.family.variant(order.variant)
    run = loaded(order, variant)
    generator = np.random.default_rng(1)
    found: dict[str, Any] = {}
    rounds = asked.get("rounds", 200)
    for size in asked["sizes"]:
        batches = [[parity.made_up(one, size, generator) for one in order.family.inputs] for _ in range(8)]
        truth = [run(batch)[0].copy() for batch in batches]
        begin_ns = time.perf_counter_ns()
        for number in range(rounds):
            run(batches[number % 8])
        found[f"alone, {size} rows"] = (time.perf_counter_ns() - begin_ns) / rounds / 1e3
        flying: list[Any] = []
        wrong = 0
        begin_ns = time.perf_counter_ns()
        for number in range(rounds):
            flying.append((number, run.overlap.begin(batches[number % 8])))
            if len(flying) == 2:
                done, flight = flying.pop(0)
                wrong += not np.allclose(run.overlap.finish(flight)[0], truth[done % 8], atol=1e-5)
        run.overlap.finish(flying.pop(0)[1])
        found[f"two in flight, {size} rows"] = (time.perf_counter_ns() - begin_ns) / rounds / 1e3
        found[f"wrong, {size} rows"] = wrong
    return found


def signatures(_: dict[str, Any]) -> dict[str, Any]:
    """The parameters of what Clover calls in torch-tensorrt, as it is installed."""
    import torch_tensorrt

    functions = {
        "dynamo.compile": torch_tensorrt.dynamo.compile,
        "save": torch_tensorrt.save,
        "load": torch_tensorrt.load,
    }
    return {name: sorted(inspect.signature(function).parameters) for name, function in functions.items()}


ACTIONS = {
    "facts": facts,
    "answers": answers,
    "burn": burn,
    "copies": copies,
    "fill": fill,
    "pinned": pinned,
    "context": context,
    "hot_path": hot_path,
    "overlapped": overlapped,
    "signatures": signatures,
}


def main() -> int:
    """Do what standard input asks for."""
    if os.environ.get("CLOVER_PLAYED_CUDA"):
        from tests.support import played_cuda

        played_cuda.install()
    asked = json.loads(sys.stdin.read())
    print(json.dumps(ACTIONS[asked["do"]](asked)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
