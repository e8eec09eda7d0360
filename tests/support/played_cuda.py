"""torch.cuda as the CPU plays it: what the GPU tests call is there, takes their arguments, and works in order.

    python -m tests.support.played_cuda     reads [[module, function, asked], ...] from standard input; prints a list

`install` changes this process for good, so it is one of its own.  Tensors for "cuda" are made on the CPU; a graph keeps
the operations of its capture and repeats them, so what is replayed is right or wrong as on a GPU.  Nothing of time,
memory or streams is like a GPU's.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import sys
import time
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

VARIABLE = "CLOVER_PLAYED_CUDA"
"""Programs in `tests/gpu` install this first if the environment has it."""

_TOTAL = 40 << 30
_modes: list[Any] = []


def _here(value: Any) -> Any:
    return "cpu" if isinstance(value, (str, torch.device)) and str(value).startswith("cuda") else value


class _OnCpu(TorchFunctionMode):
    """Makes on the CPU what is asked of the GPU."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.is_pinned:
            return True
        named = {name: _here(value) for name, value in (kwargs or {}).items() if name != "pin_memory"}
        return func(*map(_here, args), **named)


class Stream:
    """Work that is done at once."""

    def synchronize(self) -> None: ...
    def wait_event(self, event: Event) -> None: ...


class Event:
    """The time at which it was recorded."""

    def __init__(self, enable_timing: bool = False, blocking: bool = False) -> None:
        self.at_s = 0.0

    def record(self, stream: Stream | None = None) -> None:
        self.at_s = time.perf_counter()

    def synchronize(self) -> None: ...
    def query(self) -> bool:
        return True


class CUDAGraph:
    """The operations of a capture."""

    def __init__(self) -> None:
        self.kept: list[tuple[Any, Any, Any, Any]] = []

    @torch.inference_mode()
    def replay(self) -> None:
        for func, args, kwargs, made in self.kept:
            for old, new in zip(tree_leaves(made), tree_leaves(func(*args, **kwargs)), strict=True):
                if isinstance(old, torch.Tensor) and old is not new:
                    old.copy_(new)


class _Capture(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self, graph: CUDAGraph) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._graph = graph

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        self._graph.kept.append((func, args, kwargs or {}, made))
        return made


class Driver:
    """The calls of `clover.worker.cuda_driver.DriverCalls`: memory is locked once."""

    def __init__(self) -> None:
        self._locked: set[int] = set()

    def start(self) -> int:
        return 0

    def register(self, address: int, size: int) -> int:
        known = address in self._locked
        self._locked.add(address)
        return 712 if known else 0

    def name(self, code: int) -> str:
        return f"CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED ({code})"


def install() -> None:
    """Play CUDA in this process from now on."""
    from clover.worker import cuda_driver

    cuda: Any = torch.cuda
    for name, value in {
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "mem_get_info": lambda: (_TOTAL - (1 << 30), _TOTAL),
        "memory_reserved": lambda: 0,
        "get_device_name": lambda device=0: os.environ[VARIABLE],
        "synchronize": lambda: None,
        "current_device": lambda: 0,
        "graph_pool_handle": lambda: (0, 1),
        "Stream": Stream,
        "Event": Event,
        "CUDAGraph": CUDAGraph,
        "stream": contextlib.nullcontext,
        "graph": lambda graph, pool=None, stream=None: _Capture(graph),
        "cudart": lambda: type("Runtime", (), {"cudaHostRegister": staticmethod(lambda *_: 712)}),
    }.items():
        setattr(cuda, name, value)
    torch.version.cuda = "13.0"
    driver: Any = cuda_driver
    played = Driver()
    driver.CudaDriver = lambda: played
    _modes.append(_OnCpu())
    _modes[-1].__enter__()


def main() -> None:
    install()
    answers = []
    for module, function, asked in json.loads(sys.stdin.read()):
        answers.append(getattr(importlib.import_module(module), function)(asked))
    print(json.dumps(answers))


if __name__ == "__main__":
    main()
