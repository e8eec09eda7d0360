"""Page-locked memory, against a driver and a torch that say what they were asked."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import msgspec
import numpy as np
import pytest

from clover.runtime.memory.slab import Layout, Slab
from clover.types import FamilySpec, TensorSpec, VariantSpec
from clover.worker import cuda_driver, frames, main
from clover.worker.batches import Batches

SPEC = FamilySpec(
    name="toy",
    inputs=(
        TensorSpec(name="x", datatype="FP32", shape=(4,)),
        TensorSpec(name="text", datatype="BYTES", shape=(1,), max_bytes=64),
    ),
    outputs=(TensorSpec(name="y", datatype="FP32", shape=(2,)),),
    variants=(VariantSpec(name="only", loader="toy:load"),),
    max_batch=4,
)
ROW_BYTES = 16


class Driver:
    """Registers nothing, and answers `code`."""

    def __init__(self, code: int = 0) -> None:
        self.code = code
        self.regions: list[tuple[int, int]] = []

    def start(self) -> int:
        return self.code

    def register(self, address: int, size: int) -> int:
        self.regions.append((address, size))
        return self.code

    def name(self, code: int) -> str:
        return f"CUDA_ERROR_{code}"


class Tensor:
    def __init__(self, array: Any) -> None:
        self.numpy = lambda: array


class Torch:
    """As much of torch as pinning uses; `locked` are the arrays that it allocated page-locked."""

    uint8 = "uint8"

    def __init__(self, *, initialised: bool, full: bool = False) -> None:
        self.cuda = self
        self.is_initialized = lambda: initialised
        self.full = full
        self.locked: list[Any] = []

    def zeros(self, size: int, *, dtype: str, pin_memory: bool) -> Tensor:
        assert (dtype, pin_memory) == ("uint8", True)
        if self.full:
            raise RuntimeError("CUDA error: out of memory")
        self.locked.append(np.zeros(size, np.uint8))
        return Tensor(self.locked[-1])


@pytest.fixture
def slab() -> Iterator[Slab]:
    made = Slab.create(Layout(SPEC, 8))
    yield made
    made.close()


def gathered(batches: Batches, *slots: int) -> int:
    """The address of the first input of a batch of `slots`."""
    return int(batches.gather(np.array(slots, np.uint32))[0].ctypes.data)


def fill(slab: Slab) -> None:
    for slot in range(8):
        slab.input(0)[slot] = slot
        slab.put_bytes("input", 1, slot, b"\x01\x00\x00\x00a")
        slab.set_dims("input", 1, slot, (1,))


def test_nothing_is_locked_unless_a_gpu_is_used(slab: Slab, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Driver()
    monkeypatch.setitem(sys.modules, "torch", Torch(initialised=False))
    assert cuda_driver.pin([Batches(slab)], 4, lambda: driver) == 0
    assert driver.regions == []


def test_inputs_of_the_slab_are_registered_and_scattered_rows_go_into_memory_of_torch(
    slab: Slab, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(slab)
    driver, torch, batches = Driver(), Torch(initialised=True), Batches(slab)
    monkeypatch.setitem(sys.modules, "torch", torch)
    assert cuda_driver.pin([batches], 4, lambda: driver) == 8 * ROW_BYTES
    ((address, size),) = driver.regions  # neither bytes nor outputs
    assert (address, size) == (slab.input(0).ctypes.data, 8 * ROW_BYTES)
    (staged,) = torch.locked
    assert gathered(batches, 2, 3, 4) == address + 2 * ROW_BYTES
    assert gathered(batches, 5, 2) == staged.ctypes.data
    assert batches.gather(np.array([5, 2], np.uint32))[0][:, 0].tolist() == [5.0, 2.0]


def test_what_the_driver_refuses_goes_by_way_of_torch_and_is_said_once(
    slab: Slab, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fill(slab)
    torch, batches = Torch(initialised=True), Batches(slab)
    monkeypatch.setitem(sys.modules, "torch", torch)
    assert cuda_driver.pin([batches], 4, lambda: Driver(code=801)) == 0
    (record,) = caplog.records
    assert (record.levelname, "CUDA_ERROR_801" in record.getMessage()) == ("WARNING", True)
    (staged,) = torch.locked
    for slots in ((2, 3, 4), (5, 2)):
        assert gathered(batches, *slots) == staged.ctypes.data
        assert batches.gather(np.array(slots, np.uint32))[0][:, 0].tolist() == list(map(float, slots))


def test_without_driver_and_without_memory_of_torch_rows_are_copied_out_of_pageable_memory(
    slab: Slab, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def none() -> Driver:
        raise OSError("libcuda.so.1: cannot open shared object file")

    fill(slab)
    batches = Batches(slab)
    monkeypatch.setitem(sys.modules, "torch", Torch(initialised=True, full=True))
    assert cuda_driver.pin([batches], 4, none) == 0
    assert "libcuda.so.1" in caplog.text
    assert batches.gather(np.array([1, 2], np.uint32))[0][:, 0].tolist() == [1.0, 2.0]


def test_cuda_starts_before_new_privileges_are_given_up_and_only_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The driver may need a setuid program for its device nodes."""
    seen: list[str] = []

    class Libc:
        def prctl(self, *what: int) -> int:
            seen.append(f"prctl {what[0]}")
            raise InterruptedError  # the rest would change this process

    monkeypatch.setattr(main.cuda_driver, "start", lambda: seen.append(main.os.environ["CUDA_VISIBLE_DEVICES"]) or "")
    monkeypatch.setattr(main.ctypes, "CDLL", lambda *args, **named: Libc())
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "all of them")
    order = frames.WorkerOrder(family=SPEC, variant="only", backend="eager", cores=(0,), max_batch=4)
    for visible, wanted in (("", ["prctl 38"]), ("MIG-1", ["MIG-1", "prctl 38"])):
        seen.clear()
        with pytest.raises(InterruptedError):
            main._harden(msgspec.structs.replace(order, visible_devices=visible))
        assert seen == wanted


def test_a_driver_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_driver, "LIBRARY", "libcuda-of-nowhere.so.1")
    assert "libcuda-of-nowhere.so.1" in cuda_driver.start()
