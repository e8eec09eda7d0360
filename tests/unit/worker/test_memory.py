"""What a variant holds: weights are counted, the rest is what the process or the device grew by."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from clover.worker.memory import DeviceMemory, MemoryMeter, ResidentPages, weights_of

MIB = 1 << 20


class Source:
    """Memory that a test sets, in MiB."""

    def __init__(self, own: int) -> None:
        self.own, self.now, self.most = own, 0, 0

    def start(self) -> int:
        return self.own * MIB

    def set(self, now: int) -> None:
        self.now = now
        self.most = max(self.most, now)

    def held(self) -> int:
        return self.now * MIB

    def peak(self) -> int:
        return self.most * MIB

    def forget(self) -> None:
        self.most = self.now

    def split_shared(self, grown: int, weights_bytes: int) -> tuple[int, int]:
        return max(0, grown - weights_bytes), max(0, grown - weights_bytes)


def measured(meter: MemoryMeter, source: Source, variant: str, weights: int, *levels: int) -> tuple[int, int]:
    """Weights and peak, in MiB, of a variant at whose loading, first row and largest batch memory is at `levels`."""
    loading, settled, largest, after = levels
    meter.begin()
    source.set(loading)
    source.set(settled)
    for _ in range(2):  # after each batch size; the first one counts
        meter.settle(weights * MIB)
    source.set(largest)
    source.set(after)
    found = meter.end(variant, weights * MIB)
    assert found.variant == variant
    return found.weights_bytes // MIB, found.peak_bytes // MIB


def test_what_the_first_variant_brought_beside_its_weights_is_the_context() -> None:
    source = Source(own=10)
    source.set(100)
    meter = MemoryMeter(source)
    assert measured(meter, source, "a", 20, 180, 150, 157, 152) == (20, 7)
    assert meter.context_bytes == (10 + 30) * MIB
    assert measured(meter, source, "b", 40, 193, 193, 196, 194) == (40, 4)  # 1 more than its weights, and 3 for a batch
    assert measured(meter, source, "c", 5, 230, 199, 201, 201) == (5, 31)  # loading took more than any batch
    assert measured(meter, source, "d", 9, 205, 205, 205, 205) == (9, 0)  # mapped weights, not all of them touched
    assert meter.context_bytes == 40 * MIB
    assert meter.total_bytes == (40 + 27 + 44 + 36 + 9) * MIB
    meter.drop()
    assert [one.variant for one in meter.held] == ["a", "b", "c"]


def test_a_variant_that_answered_nothing_while_it_was_warmed_is_measured_all_the_same() -> None:
    source = Source(own=1)
    source.set(50)
    meter = MemoryMeter(source)
    meter.begin()
    source.set(53)
    assert meter.end("python", 0).peak_bytes == 0
    assert meter.context_bytes == 4 * MIB


def test_resident_pages_are_what_the_kernel_says(tmp_path: Path) -> None:
    source = ResidentPages(tmp_path)
    assert (source.held(), source.peak()) == (0, 0), "nothing to read"
    (tmp_path / "status").write_text("Name:\tx\nVmHWM:\t  300 kB\nVmRSS:\t  200 kB\nThreads:\t1\n")
    assert (source.held(), source.peak()) == (200 << 10, 300 << 10)
    source.forget()
    assert (tmp_path / "clear_refs").read_text() == "5"
    ResidentPages(tmp_path / "none").forget()
    real = ResidentPages()
    assert 0 < real.held() <= real.peak()
    assert real.start() > 0


def test_a_gpus_memory_is_what_is_in_use_on_it(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = SimpleNamespace(is_initialized=lambda: False, mem_get_info=lambda: (3 * MIB, 10 * MIB))
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))
    source = DeviceMemory()
    assert (source.start(), source.held(), source.peak()) == (0, 0, 0)
    cuda.is_initialized = lambda: True
    source.forget()
    assert (source.held(), source.peak()) == (7 * MIB, 7 * MIB)


@pytest.mark.parametrize(
    ("others", "reserved", "weights"),
    [(0, 900, 700), (5000, 900, 700), (0, 100, 700)],
    ids=["alone", "swap", "compiled"],
)
def test_on_a_gpu_what_torch_did_not_take_is_the_context_or_anothers(
    monkeypatch: pytest.MonkeyPatch, others: int, reserved: int, weights: int
) -> None:
    context, own = 500, reserved if reserved >= weights else reserved + weights
    used = others + context + own
    cuda = SimpleNamespace(
        is_initialized=lambda: used > 0,
        mem_get_info=lambda: ((80_000 - used) * MIB, 80_000 * MIB),
        memory_reserved=lambda: reserved * MIB,
    )
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))
    meter = MemoryMeter(DeviceMemory())
    meter._before = 0
    meter.settle(weights * MIB)
    used += 300  # for larger batches
    reserved += 300
    assert meter.end("a", weights * MIB).peak_bytes == (own - weights + 300) * MIB
    assert meter.context_bytes == min(context + others, 1024) * MIB
    meter.begin()
    used += 250
    meter.settle(200 * MIB)
    assert meter.end("b", 200 * MIB).peak_bytes == 50 * MIB
    assert meter.total_bytes == (min(context + others, 1024) + own + 300 + 250) * MIB


def test_weights_are_those_counted_or_the_largest_file_of_the_artifact(tmp_path: Path) -> None:
    def run() -> None: ...

    assert weights_of(run, "") == 0
    (tmp_path / "manifest").write_bytes(b"x")
    (tmp_path / "model.so").write_bytes(b"x" * 300)
    (tmp_path / "folder").mkdir()
    assert weights_of(run, str(tmp_path)) == 300
    run.weights_bytes = 12  # type: ignore[attr-defined]
    assert weights_of(run, str(tmp_path)) == 12
