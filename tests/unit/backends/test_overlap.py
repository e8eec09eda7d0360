"""Two batches in flight, on streams of a device that is played: what each step waits for, and when it ends."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import numpy as np
import pytest

from clover.backends import cuda, overlap
from clover.errors import DeviceLost, WorkerError
from clover.types import FamilySpec, TensorSpec, VariantSpec
from tests.support.lazy import LazyModule

if TYPE_CHECKING:
    import torch
else:
    torch = LazyModule("torch")

pytestmark = pytest.mark.slow  # torch, which takes two seconds to import

PLAIN = VariantSpec(name="v", loader="model:load")
X = TensorSpec(name="x", datatype="FP32", shape=(3,))
Y = TensorSpec(name="y", datatype="FP32", shape=(3,))
SPEC = FamilySpec(name="f", inputs=(X,), outputs=(Y,), variants=(PLAIN,), max_batch=4)


class PlayedStream:
    """Work of so many seconds each, in order, that happens when the clock reaches its end (or, `early`, its begin)."""

    def __init__(self, device, seconds):
        self.device, self.seconds = device, seconds
        self.free_s = 0.0

    def run(self, work):
        begin_s = max(self.free_s, self.device.now_s)
        self.free_s = begin_s + self.seconds
        at_s = begin_s if self.device.early else self.free_s
        self.device.pending.append((at_s, len(self.device.pending), work))

    def record(self, event):
        event.at_s = self.free_s

    def after(self, event):
        self.free_s = max(self.free_s, event.at_s)


class PlayedEvent:
    def __init__(self, device):
        self.device, self.at_s = device, 0.0

    def query(self):
        return self.at_s <= self.device.now_s

    def synchronize(self):
        self.device.reach(self.at_s)


class PlayedDevice:
    def __init__(self, in_s=1.0, compute_s=3.0, out_s=1.0, early=False):
        self.now_s, self.early, self.pending = 0.0, early, []
        self.copy_in, self.compute, self.copy_out = (PlayedStream(self, s) for s in (in_s, compute_s, out_s))

    def event(self, *, sleeping=False):
        return PlayedEvent(self)

    def reach(self, at_s):
        """Let time pass until `at_s`, and all that ends until then happen."""
        self.now_s = max(self.now_s, at_s)
        while self.pending and min(self.pending)[0] <= self.now_s:
            first = min(self.pending)
            self.pending[self.pending.index(first)] = (float("inf"), first[1], None)
            with torch.inference_mode():
                first[2]()


class Recorded:
    """What a CUDA graph does, on the CPU: the same places are read and written again."""

    def __init__(self, call, inputs):
        self._call, self._inputs = call, inputs
        self.outputs = call(*inputs)

    def replay(self):
        self.outputs.copy_(self._call(*self._inputs))


def runner(call=lambda x: x * 2 + 1, *, graphs, spec=SPEC):
    made = cuda.Runner(call, spec, PLAIN, graphs=graphs, device="cpu", record=Recorded)
    made.record_launches()
    return made


def rows(number, count=4):
    return [np.full((count, 3), number, np.float32)]


@pytest.mark.parametrize("early", [False, True])
@pytest.mark.parametrize("graphs", [False, True])
@pytest.mark.parametrize(("in_s", "compute_s", "out_s"), [(1.0, 3.0, 1.0), (5.0, 2.0, 1.0), (1.0, 2.0, 6.0)])
def test_copies_hide_behind_computing_and_no_buffer_is_overwritten(graphs, early, in_s, compute_s, out_s):
    device = PlayedDevice(in_s, compute_s, out_s, early)
    two = overlap.Overlap(runner(graphs=graphs), SPEC, PLAIN, device, "cpu")
    count, flying, ends = 6, [], []
    for number in range(count):
        flying.append((number, two.begin(rows(number, 1 + number % 4))))
        if len(flying) == overlap.IN_FLIGHT:
            done, flight = flying.pop(0)
            (answer,) = two.finish(flight)
            ends.append(device.now_s)
            np.testing.assert_array_equal(answer, rows(done * 2 + 1, 1 + done % 4)[0])
    (answer,) = two.finish(flying[0][1])
    np.testing.assert_array_equal(answer, rows(11, 2)[0])
    assert ends == sorted(ends)
    alone = in_s + compute_s + out_s
    # With two in flight a third begins when the first is out: no step is slower than half of all three, or its own.
    each = max(in_s, compute_s, out_s, alone / 2)
    assert device.now_s <= alone + (count - 1) * each
    assert device.now_s < 0.75 * count * alone


def test_one_batch_takes_what_its_steps_take():
    device = PlayedDevice()
    two = overlap.Overlap(runner(graphs=False), SPEC, PLAIN, device, "cpu")
    for number in range(3):
        flight = two.begin(rows(number))
        assert not flight.ready()
        two.finish(flight)
        assert flight.ready()
    assert device.now_s == 15.0


def test_a_model_that_fails_leaves_the_batch_before_as_it_is():
    def call(x):
        if float(x[0, 0]) == 1:
            raise ValueError("no ones")
        return x + 1

    class AtOnce(PlayedStream):
        def run(self, work):
            work()

    device = PlayedDevice()
    device.copy_in, device.compute, device.copy_out = (AtOnce(device, 0.0) for _ in range(3))
    two = overlap.Overlap(runner(call, graphs=False), SPEC, PLAIN, device, "cpu")
    first = two.begin(rows(5))
    with pytest.raises(ValueError, match="no ones"):
        two.begin(rows(1))
    last = two.begin(rows(7))
    assert (two.finish(first)[0] == 6).all()
    assert (two.finish(last)[0] == 8).all()


def test_what_is_not_as_declared_reaches_the_caller_unchanged():
    device = PlayedDevice()
    two = overlap.Overlap(runner(lambda x: (x[:, :2], x), graphs=False), SPEC, PLAIN, device, "cpu")
    short, extra = two.finish(two.begin(rows(1)))
    assert (short.shape, extra.shape) == ((4, 2), (4, 3))
    two = overlap.Overlap(runner(lambda x: "no", graphs=False), SPEC, PLAIN, device, "cpu")
    with pytest.raises(TypeError, match="returned str where a tensor is declared"):
        two.finish(two.begin(rows(1)))


def test_errors_of_cuda_end_the_worker_and_others_the_batch():
    accelerator = type("AcceleratorError", (RuntimeError,), {})
    lost = accelerator("CUDA error: unknown error")
    lost.error_code = 999

    def failing(error):
        class Failing(PlayedEvent):
            def synchronize(self):
                raise error

            query = synchronize

        return Failing

    for error, kind in (
        (accelerator("assert"), WorkerError),
        (lost, DeviceLost),
        (RuntimeError("shape"), RuntimeError),
    ):
        device = PlayedDevice()
        device.event = lambda *, sleeping=False, device=device, error=error: failing(error)(device)
        two = overlap.Overlap(runner(graphs=False), SPEC, PLAIN, device, "cpu")
        flight = two.begin(rows(1))
        assert flight.ready()  # finishing it says what is wrong
        with pytest.raises(kind):
            two.finish(flight)


def test_only_fixed_shapes_overlap():
    free = TensorSpec(name="y", datatype="FP32", shape=(-1,), max_shape=(3,))
    assert overlap.possible(SPEC, PLAIN)
    assert not overlap.possible(msgspec.structs.replace(SPEC, outputs=(free,)), PLAIN)
    assert not overlap.possible(SPEC, msgspec.structs.replace(PLAIN, parameters={"overlap": False}))
    assert runner(graphs=False).overlap is None  # not on the CPU


def test_torch_has_what_the_streams_ask_of_it():
    assert callable(torch.cuda.Stream.wait_event)
    assert callable(torch.cuda.Event.record)
    assert callable(torch.cuda.Event.query)
    assert callable(torch.cuda.Event.synchronize)
