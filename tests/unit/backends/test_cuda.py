"""What a GPU's worker does around its model, as far as it shows without one: on torch's CPU device."""

from __future__ import annotations

import contextlib
import inspect
import logging
import os
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import msgspec
import numpy as np
import pytest

from clover import backends, families
from clover.backends import cuda, cuda_errors, parity, targets
from clover.backends.eager import EagerBackend
from clover.backends.tensors import load_module, torch_dtype, with_casts
from clover.errors import DeviceLost, ProfileError, WorkerError
from clover.profiling.candidates import Candidates
from clover.types import FamilySpec, TensorSpec, VariantSpec
from clover.worker.loop import MODEL_FAILED, ResidentLane, ServerChannel, WorkerLoop
from tests.support.lazy import LazyModule

if TYPE_CHECKING:
    import torch
else:
    torch = LazyModule("torch")

pytestmark = pytest.mark.slow  # torch, which takes two seconds to import

FAMILIES = Path(__file__).parents[2] / "families"
PLAIN = VariantSpec(name="v", loader="model:load")


def family(*inputs, outputs=None, max_batch=8):
    given = inputs or (TensorSpec(name="x", datatype="FP32", shape=(3,)),)
    made = outputs or (TensorSpec(name="y", datatype="FP32", shape=(3,)),)
    return FamilySpec(name="f", inputs=given, outputs=made, variants=(PLAIN,), max_batch=max_batch)


class Recorded:
    """What a CUDA graph does, on the CPU: the same places are read and written again by what was called once."""

    def __init__(self, call, inputs):
        self._call, self._inputs = call, inputs
        self.outputs = call(*inputs).clone()
        self.replays = 0

    def replay(self):
        self.replays += 1
        self.outputs.copy_(self._call(*self._inputs))


def recorded(call, spec, variant=PLAIN, *, record=None, check=True):
    """A runner on the CPU whose launches were recorded, if they may be."""
    made = cuda.Runner(call, spec, variant, graphs=True, device="cpu", record=record)
    made.record_launches(check=check)
    return made


# --- which device -----------------------------------------------------------------------------------------------------


def test_a_worker_without_a_gpu_runs_on_the_cpu():
    assert backends.device_for("") == "cpu"


@pytest.mark.skipif("torch.cuda.is_available()", reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_never_replaced_by_the_cpu():
    with pytest.raises(WorkerError, match=r"no GPU answers to MIG-1: torch .* is a build without CUDA|finds no device"):
        backends.device_for("MIG-1")
    target = targets.Target(gpu="NVIDIA A100", profile="1g.5gb", driver="1.2")
    with pytest.raises(ProfileError, match=r"for 1g.5gb of NVIDIA A100, the instance must exist"):
        cuda.for_building(PLAIN, target)
    with pytest.raises(ProfileError, match="no GPU answers to MIG-1"):
        cuda.for_building(PLAIN, msgspec.structs.replace(target, visible="MIG-1"))


def test_precision_decides_whether_factors_may_be_rounded():
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    try:
        for precision, allowed in (("tf32", True), ("fp32", False), ("fp16", False)):
            cuda.use_precision(precision)
            assert torch.backends.cuda.matmul.allow_tf32 is allowed
            assert torch.backends.cudnn.allow_tf32 is allowed
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def test_which_errors_end_a_worker():
    accelerator = type("AcceleratorError", (RuntimeError,), {})
    out_of_memory = type("OutOfMemoryError", (RuntimeError,), {})
    assert cuda_errors.fatal(accelerator("device-side assert"))
    assert cuda_errors.fatal(RuntimeError("CUDA error: an illegal memory access was encountered"))
    assert not cuda_errors.fatal(out_of_memory("CUDA out of memory; CUDA error: out of memory"))
    assert not cuda_errors.fatal(RuntimeError("The size of tensor a (3) must match"))
    refused = "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"
    assert not cuda_errors.fatal(RuntimeError(refused))
    assert not cuda_errors.fatal(RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"))
    assert cuda_errors.fatal(RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"))

    def fails(x):
        raise accelerator("lost")

    run = cuda.Runner(fails, family(), PLAIN, graphs=False, device="cpu")
    with pytest.raises(WorkerError, match="the GPU failed, and this worker with it: lost"):
        run([np.zeros((1, 3), np.float32)])
    run = cuda.Runner(lambda x: x @ x, family(), PLAIN, graphs=False, device="cpu")
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        run([np.zeros((2, 3), np.float32)])


# --- arrays in and out ------------------------------------------------------------------------------------------------


def test_a_runner_takes_arrays_and_reuses_what_it_returns():
    run = cuda.Runner(lambda x: x * 2, family(), PLAIN, graphs=False, device="cpu")
    first = run([np.full((4, 3), 1, np.float32)])[0]
    kept = first.copy()
    second = run([np.full((2, 3), 5, np.float32)])[0]
    assert (kept == 2).all()
    assert kept.shape == (4, 3)
    assert (second == 10).all()
    assert second.shape == (2, 3)
    assert np.shares_memory(first, second)


def test_types_and_shapes_pass_through():
    variable = TensorSpec(name="x", datatype="BF16", shape=(-1,), max_shape=(5,))
    bits = TensorSpec(name="y", datatype="BF16", shape=(-1,), max_shape=(5,))
    run = recorded(lambda x: x * 2, family(variable, outputs=(bits,)))
    assert run.recorded == ()  # rows of several shapes are not recorded
    ones = np.full((2, 4), 0x3F80, np.uint16)
    (answer,) = run([ones])
    assert answer.dtype == np.uint16
    assert (answer == 0x4000).all()
    several = (TensorSpec(name="a", datatype="INT64", shape=()), TensorSpec(name="b", datatype="BOOL", shape=(2,)))
    inputs = (TensorSpec(name="x", datatype="INT64", shape=()),)
    run = cuda.Runner(
        lambda x: (x + 1, torch.stack([x > 0, x < 0], 1)),
        family(*inputs, outputs=several),
        PLAIN,
        graphs=False,
        device="cpu",
    )
    a, b = run([np.array([3, -1])])
    assert a.tolist() == [4, 0]
    assert b.tolist() == [[True, False], [False, True]]


def test_what_is_not_as_declared_reaches_the_caller_unchanged():
    run = cuda.Runner(lambda x: (x[:, :2], x), family(), PLAIN, graphs=False, device="cpu")
    short, extra = run([np.zeros((2, 3), np.float32)])
    assert short.shape == (2, 2)
    assert extra.shape == (2, 3)
    run = cuda.Runner(lambda x: "no", family(), PLAIN, graphs=False, device="cpu")
    with pytest.raises(TypeError, match="returned str where a tensor"):
        run([np.zeros((2, 3), np.float32)])


# --- recorded launches ------------------------------------------------------------------------------------------------


def test_batches_are_replayed_in_the_next_larger_size_that_was_recorded():
    made = []

    def record(call, inputs):
        made.append(Recorded(call, inputs))
        return made[-1]

    run = recorded(lambda x: x.relu() + 1, family(), record=record)
    assert run.recorded == (1, 2, 3, 4, 6, 8)
    assert [len(item.outputs) for item in made] == [8, 6, 4, 3, 2, 1], "what a larger one frees is room for the next"
    made.reverse()
    replays = [item.replays for item in made]
    for rows in range(1, 9):
        array = np.random.default_rng(rows).standard_normal((rows, 3)).astype(np.float32)
        np.testing.assert_array_equal(run([array])[0], np.maximum(array, 0) + 1)
    assert [item.replays - before for item, before in zip(made, replays, strict=True)] == [1, 1, 1, 1, 2, 2]


def test_the_next_larger_size_has_less_than_half_as_many_rows_more():
    for most in range(1, 200):
        sizes = cuda.recorded_sizes(most)
        assert sizes == sorted(set(sizes))
        assert (sizes[0], sizes[-1]) == (1, most)
        for rows in range(1, most + 1):
            assert next(size for size in sizes if size >= rows) < rows * 1.5
    assert cuda.recorded_sizes(32) == [1, 2, 3, 4, 6, 8, 12, 16, 24, 32]


def test_a_model_whose_rows_depend_on_each_other_is_not_replayed(caplog):
    with caplog.at_level(logging.WARNING, "clover.backends"):
        run = recorded(lambda x: x - x.mean(0), family(), record=Recorded)
    assert run.recorded == ()
    assert "the recorded launches of 6 rows, used for 5, do not do what the model does" in caplog.text
    array = np.array([[1, 2, 3], [3, 2, 1]], np.float32)
    np.testing.assert_allclose(run([array])[0], array - array.mean(0))


def test_a_model_that_decides_on_the_host_is_not_replayed(caplog):
    calls = iter(range(10**6))

    class Frozen(Recorded):
        def replay(self):  # the launches of the first call: what the host decided then
            self.outputs.copy_(self._inputs[0])

    with caplog.at_level(logging.WARNING, "clover.backends"):
        run = recorded(lambda x: x + (next(calls) > 0), family(), record=Frozen)
    assert run.recorded == ()
    assert "v runs without CUDA graphs: the recorded launches of 1 rows do not do what the model does" in caplog.text
    assert (run([np.ones((1, 3), np.float32)])[0] == 2).all()


def test_recording_that_fails_leaves_the_model_as_it_is(caplog):
    def record(call, inputs):
        raise RuntimeError("operation not permitted when stream is capturing")

    with caplog.at_level(logging.WARNING, "clover.backends"):
        run = recorded(lambda x: x + 1, family(), record=record)
    assert run.recorded == ()
    assert "not permitted when stream is capturing (parameters.cuda_graphs = false" in caplog.text
    assert (run([np.ones((1, 3), np.float32)])[0] == 2).all()
    off = msgspec.structs.replace(PLAIN, parameters={"cuda_graphs": False})
    caplog.clear()
    run = recorded(lambda x: x + 1, family(), off, record=record)
    assert (run.recorded, caplog.text) == ((), "")


def test_what_was_compared_once_is_recorded_without_comparing_again(caplog):
    calls = []

    def call(x):
        calls.append(len(x))
        return x + 1

    run = recorded(call, family(), record=Recorded)
    assert (run.recorded, run.replay_fault) == ((1, 2, 3, 4, 6, 8), "")
    compared = len(calls)
    calls.clear()
    run = recorded(call, family(), record=Recorded, check=False)
    assert run.recorded == (1, 2, 3, 4, 6, 8)
    assert run.replay_fault is None  # it does not know
    assert sorted(calls) == [1, 2, 3, 4, 6, 8]
    assert compared == 6 + 6 * 4  # model and replay, of each size and of as few rows as it is used for
    (answer,) = run([np.ones((5, 3), np.float32)])
    assert (answer == 2).all()
    assert caplog.text == ""


def test_what_is_wrong_with_replays_is_said_but_for_want_of_memory():
    assert "do not do what the model does" in recorded(lambda x: x - x.mean(0), family(), record=Recorded).replay_fault

    def fails(text):
        def record(call, inputs):
            raise RuntimeError(text)

        return recorded(lambda x: x + 1, family(), record=record)

    assert fails("not permitted when stream is capturing").replay_fault == "not permitted when stream is capturing"
    assert fails("CUDA out of memory").replay_fault is None  # another worker may have more
    off = msgspec.structs.replace(PLAIN, parameters={"cuda_graphs": False})
    assert recorded(lambda x: x, family(), off, record=Recorded).replay_fault is None


def test_a_capture_that_fails_ends_what_the_allocator_began():
    asked = []

    @contextlib.contextmanager
    def capture(graph, pool, stream):
        try:
            yield
        finally:
            raise RuntimeError("CUDA error: operation not permitted when stream is capturing")

    def end(device, pool):
        asked.append((device, pool))
        raise RuntimeError("endAllocatePool: not currently recording to mempool_id")  # it did by itself: as well

    played = SimpleNamespace(
        cuda=SimpleNamespace(CUDAGraph=object, graph=capture, stream=contextlib.nullcontext, current_device=lambda: 0),
        _C=SimpleNamespace(_cuda_endAllocateToPool=end),
    )
    graphs = object.__new__(cuda._Graphs)
    graphs._torch, graphs._pool = played, (0, 7)
    graphs._stream = SimpleNamespace(synchronize=lambda: None, __enter__=None)
    with pytest.raises(RuntimeError, match="when stream is capturing"):
        graphs(lambda: None, [])
    assert asked == [(0, (0, 7))]
    assert callable(torch._C._cuda_endAllocateToPool)


# --- half precision ---------------------------------------------------------------------------------------------------


def test_half_precision_is_real_and_keeps_the_declared_types():
    toy = families.load_family(str(FAMILIES / "toy"))
    inputs, _ = families.load_evaluation(toy, "held_out")
    full = toy.variant("full")
    half = msgspec.structs.replace(full, precision="fp16")
    assert next(load_module(toy, half).parameters()).dtype is torch.float16
    eager = backends.get("eager")
    exact, rounded = (eager.load(toy, variant, Path(), 1)(inputs)[0] for variant in (full, half))
    assert rounded.dtype == np.float32
    assert not np.array_equal(exact, rounded)
    assert parity.compare(toy.outputs, [rounded], [exact], "fp16")[1] == ""
    assert parity.compare(toy.outputs, [rounded], [exact], "fp32")[1] != ""
    same = eager.load(toy, msgspec.structs.replace(full, precision="tf32"), Path(), 1)(inputs)[0]
    np.testing.assert_array_equal(same, exact)


def test_fewer_bits_are_for_float32_modules_on_gpus(monkeypatch):
    toy = families.load_family(str(FAMILIES / "toy"))
    full = toy.variant("full")
    gpu = targets.Target(gpu="NVIDIA A100", profile="gpu", driver="1.2")
    seen = []

    def made(self, family, variant, folder, threads, device="cpu"):
        seen.append((variant.name, variant.precision, device))

    monkeypatch.setattr(EagerBackend, "load", made)
    for precision in ("tf32", "fp16"):
        backend = backends.get(f"eager-{precision}")
        assert backend.gpu_only
        assert backend.supports(toy, full, gpu) == ""
        assert "is for GPUs" in backend.supports(toy, full)
        own = msgspec.structs.replace(full, precision="tf32")
        assert "is tf32 by itself" in backend.supports(toy, own, gpu)
        with pytest.raises(WorkerError, match="is for GPUs: full runs with eager here"):
            backend.load(toy, full, Path(), 1)
        backend.load(toy, full, Path(), 1, "cuda")
    assert seen == [("full", "tf32", "cuda"), ("full", "fp16", "cuda")]


def test_profiles_of_cores_neither_try_nor_mention_what_is_for_gpus(tmp_path):
    toy = families.load_family(str(FAMILIES / "toy"))
    notes = []
    found = Candidates(toy, ("eager", "eager-tf32", "eager-fp16"), tmp_path, notes)
    assert ({*map(tuple, found.of.values())}, notes) == ({("eager",)}, [])
    place = targets.Target(gpu="NVIDIA A100", profile="gpu", driver="1.2")
    found = Candidates(toy, ("eager", "eager-tf32"), tmp_path, notes, {"gpu": place})
    assert found.of["full"] == ["eager", "eager-tf32"]


def test_aoti_says_what_a_gpu_needs_beside_torch(monkeypatch, tmp_path):
    toy = families.load_family(str(FAMILIES / "toy"))
    gpu = targets.Target(gpu="NVIDIA A100", profile="gpu", driver="1.2")
    monkeypatch.setattr("clover.backends.aoti.package_version", lambda name: "1.0")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CUDA_HOME", raising=False)
    monkeypatch.delenv("CUDA_PATH", raising=False)
    if not Path("/usr/local/cuda").exists():
        assert "set CUDA_HOME" in backends.get("aoti").supports(toy, toy.variant("full"), gpu)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path))
    assert "headers are missing" in backends.get("aoti").supports(toy, toy.variant("full"), gpu)
    (tmp_path / "Python.h").touch()
    assert backends.get("aoti").supports(toy, toy.variant("full"), gpu) == ""


def test_only_floating_tensors_are_cast():
    half = msgspec.structs.replace(PLAIN, precision="fp16")
    outputs = (TensorSpec(name="a", datatype="FP32", shape=()), TensorSpec(name="b", datatype="INT64", shape=()))
    seen = []

    def call(x, n):
        seen.extend((x.dtype, n.dtype))
        return x.sum(1), n

    spec = family(
        TensorSpec(name="x", datatype="FP32", shape=(3,)),
        TensorSpec(name="n", datatype="INT64", shape=()),
        outputs=outputs,
    )
    casting = with_casts(call, spec, half)
    a, b = casting(torch.ones(2, 3), torch.ones(2, dtype=torch.int64))
    assert (seen, a.dtype, b.dtype) == ([torch.float16, torch.int64], torch.float32, torch.int64)
    assert with_casts(call, spec, PLAIN) is call
    assert [torch_dtype(t) for t in outputs] == [torch.float32, torch.int64]


def test_compiling_backends_leave_fp16_on_cores_to_eager():
    toy = families.load_family(str(FAMILIES / "toy"))
    half = msgspec.structs.replace(toy.variants[0], precision="fp16")
    gpu = targets.Target(gpu="NVIDIA A100", profile="gpu", driver="1.2")
    for name in ("aoti", "onnxruntime"):
        assert "fp16, which only eager computes on CPU cores" in backends.get(name).supports(toy, half)
    assert backends.get("eager").supports(toy, half) == ""
    assert backends.get("eager").supports(toy, half, gpu) == ""
    assert "fp16" not in backends.get("aoti").supports(toy, half, gpu)
    assert "not on a GPU" in backends.get("onnxruntime").supports(toy, toy.variants[0], gpu)
    with pytest.raises(WorkerError, match="cannot run with onnxruntime on a GPU"):
        backends.get("onnxruntime").load(toy, toy.variants[0], Path(), 1, "cuda")


# --- what torch offers ------------------------------------------------------------------------------------------------


def test_torch_has_what_a_gpu_needs_of_it():
    """Names and parameters that only a GPU exercises, held against the torch installed here."""
    assert {"pool", "stream"} <= set(inspect.signature(torch.cuda.graph.__init__).parameters)
    assert "blocking" in inspect.signature(torch.cuda.Event).parameters
    assert callable(torch.cuda.graph_pool_handle)
    assert callable(torch.cuda.CUDAGraph.replay)
    assert callable(torch.cuda.stream)
    assert issubclass(torch.OutOfMemoryError, RuntimeError)
    assert issubclass(torch.AcceleratorError, RuntimeError)
    assert torch.OutOfMemoryError.__name__ == "OutOfMemoryError"
    assert torch.AcceleratorError.__name__ == "AcceleratorError"
    assert "run_single_threaded" in inspect.signature(torch._inductor.aoti_load_package).parameters
    assert callable(torch._C._aoti.AOTIModelPackageLoader.run)


# --- the worker around it ---------------------------------------------------------------------------------------------


def test_a_worker_whose_gpu_failed_ends_and_one_whose_model_failed_goes_on():
    class Batches:
        def gather(self, slots):
            return [np.zeros((len(slots), 3), np.float32)]

        def scatter(self, slots, answers):
            pass

    class Ring:
        def __init__(self):
            self.completed = []

        def complete(self, batch, status, count, start_ns, end_ns, used_ns):
            self.completed.append((batch, status))
            return True

    def turn(error):
        def run(inputs):
            raise error

        ring, lanes = Ring(), [ResidentLane(run)]
        return ring, WorkerLoop(ServerChannel(None, ring, -1, completions), Batches(), lanes, 4, None)

    completions = os.eventfd(0)
    try:
        ring, going_on = turn(ValueError("wrong"))
        going_on._serve(7, 2)
        assert ring.completed == [(7, MODEL_FAILED)]
        for failure in (WorkerError("the GPU failed"), DeviceLost("the GPU is gone")):
            ring, ending = turn(failure)
            with pytest.raises(type(failure)):
                ending._serve(8, 2)
            assert ring.completed == []  # nobody is told that the model failed: the server sees a death
    finally:
        os.close(completions)
