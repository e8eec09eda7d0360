"""What the tests do on a GPU, in processes of their own: a process that used CUDA keeps its slice from being removed.

    python -m tests.gpu.on_gpu     reads one JSON object from standard input, prints one

CUDA_VISIBLE_DEVICES is set by the caller.  Nothing of CUDA is touched by the test process itself.
"""

from __future__ import annotations

import inspect
import json
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from clover import backends
from clover.backends.artifacts import CompileOrder


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
    run: Any = backends.get(order.backend).load(order.family, variant, Path(order.folder), 1, device)
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
        "load_ms": load_ms,
        "ms": ms,
    }


def burn(asked: dict[str, Any]) -> dict[str, Any]:
    """Multiply matrices for a while, with pauses: power that goes up and down."""
    import torch

    a = torch.randn(4096, 4096, device="cuda")
    until_s = time.monotonic() + asked["seconds"]
    count = 0
    while time.monotonic() < until_s:
        for _ in range(20):
            a = (a @ a).tanh()
            count += 1
        torch.cuda.synchronize()
        if count % 200 == 0:
            time.sleep(0.5)
    return {"products": count}


def pinned(asked: dict[str, Any]) -> dict[str, Any]:
    """Whether the driver page-locks a memfd as a worker's slab is, whether torch takes it for page-locked, and whether
    torch still works after memory was refused: by the driver's call, and by the runtime's (`poisoned`)."""
    import torch

    from clover.runtime.memory.slab import map_shared, shared_memory
    from clover.worker import pinned as production
    from clover.worker.cuda_driver import CudaDriver

    torch.zeros(1, device="cuda")
    size = 1 << 22
    mapped = map_shared(shared_memory("clover-test", size), size)
    array = np.frombuffer(mapped, np.uint8)
    registered, refused = production.register(CudaDriver(), [array])
    pinned = torch.from_numpy(array).is_pinned()
    _, again = production.register(CudaDriver(), [array])  # it is registered already
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


def signatures(_: dict[str, Any]) -> dict[str, Any]:
    """The parameters of what Clover calls in torch-tensorrt, as it is installed."""
    import torch_tensorrt

    functions = {
        "dynamo.compile": torch_tensorrt.dynamo.compile,
        "dynamo.refit_module_weights": torch_tensorrt.dynamo.refit_module_weights,
        "save": torch_tensorrt.save,
        "load": torch_tensorrt.load,
        "runtime.enable_cudagraphs": torch_tensorrt.runtime.enable_cudagraphs,
    }
    return {name: sorted(inspect.signature(function).parameters) for name, function in functions.items()}


ACTIONS = {
    "facts": facts,
    "answers": answers,
    "burn": burn,
    "pinned": pinned,
    "signatures": signatures,
}


def main() -> int:
    """Do what standard input asks for."""
    asked = json.loads(sys.stdin.read())
    print(json.dumps(ACTIONS[asked["do"]](asked)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
