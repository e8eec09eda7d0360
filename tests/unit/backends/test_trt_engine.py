"""An engine run by TensorRT's own runtime: what a worker calls, in which order, and what it says when that fails."""

from __future__ import annotations

import io
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from clover import backends
from clover.backends import tensorrt
from clover.backends.trt_engine import TYPES, TensorRtEngine, runtime_library
from clover.errors import ProfileError, WorkerError
from tests.support.lazy import LazyModule
from tests.support.played_tensorrt import PlayedTensorRt

if TYPE_CHECKING:
    import torch
else:
    torch = LazyModule("torch")

pytestmark = pytest.mark.slow  # torch, which takes two seconds to import


@pytest.fixture(scope="module")
def data():
    """An engine of two inputs: rows of four numbers, each plus three times its own weight."""

    class Net(torch.nn.Module):
        def forward(self, x, w):
            return x + 3 * w

    batch = torch.export.Dim("batch", min=1, max=8)
    program = torch.export.export(Net(), (torch.ones(2, 4), torch.ones(2, 4)), dynamic_shapes=({0: batch}, {0: batch}))
    file = io.BytesIO()
    torch.export.save(program, file)
    return file.getvalue()


def engine(library, data, inputs=("x", "w"), outputs=("output0",), fixed=True, failure=WorkerError):
    return TensorRtEngine(library, data, inputs, outputs, fixed=fixed, failure=failure, device="cpu")


def test_batches_of_every_size_are_run_where_tensors_lie(data):
    library = PlayedTensorRt()
    run = engine(library, data)
    for rows in (1, 3, 8, 3):
        x = torch.rand(rows, 4)
        (found,) = run(x, torch.ones(rows, 4))
        torch.testing.assert_close(found, x + 3)
    (made,) = library.made
    assert [context.shapes for context in made.contexts] == [{((n, 4), (n, 4))} for n in (1, 3, 8)]


def test_rows_of_several_shapes_share_a_context(data):
    library = PlayedTensorRt()
    run = engine(library, data, fixed=False)
    for rows in (2, 5):
        assert run(torch.zeros(rows, 4), torch.ones(rows, 4))[0].shape == (rows, 4)
    (made,) = library.made
    assert len(made.contexts) == 1


def test_an_engine_of_another_version_is_refused_with_what_tensorrt_says(data):
    library = PlayedTensorRt(refuses="Version tag does not match. Current Version: 240, Serialized Engine Version: 239")
    for failure in (WorkerError, ProfileError):
        with pytest.raises(
            failure, match=r"TensorRT 11.0.0 does not take the engine \(Version tag does not match.*239\)"
        ):
            engine(library, data, failure=failure)
    library.refuses = ""
    with pytest.raises(WorkerError, match=r"has tensors \['output0', 'w', 'x'\], its record names \['output0', 'y'\]"):
        engine(library, data, inputs=("y",))


def test_what_fails_is_said(data):
    library = PlayedTensorRt()
    run = engine(library, data)
    library.full = True
    with pytest.raises(RuntimeError, match="makes no execution context: out of memory"):
        run(torch.zeros(1, 4), torch.zeros(1, 4))
    library.full = False
    library.made[0].most = 4
    with pytest.raises(RuntimeError, match=r"does not take input x of shape \(5, 4\): shape \(5, 4\) is not within"):
        run(torch.zeros(5, 4), torch.zeros(5, 4))
    with pytest.raises(RuntimeError, match="not contiguous"):
        run(torch.zeros(4, 2).t(), torch.zeros(2, 4))
    library.fails = "an illegal memory access"
    with pytest.raises(RuntimeError, match="does not launch a batch of 2 rows: an illegal memory access"):
        run(torch.zeros(2, 4), torch.zeros(2, 4))


def test_an_engine_is_found_in_a_program_and_its_inputs_are_ordered():
    class Engine:
        def __init__(self, *state):
            self.state = state

        def __getstate__(self):
            return (self.state,)

    class Program:
        pass

    loaded = Program()
    loaded.a_engine = Engine("9", "name", "device", "ZGF0YQ==", "w%x", "y%z", "0")
    assert tensorrt.serialised(loaded) == (b"data", ("w", "x"), ("y", "z"))
    loaded.b_engine = loaded.a_engine
    with pytest.raises(ProfileError, match="in 2 engines instead of one"):
        tensorrt.serialised(loaded)
    loaded.b_engine, loaded.a_engine = None, Engine("9", "name", "device", "no base 64!", "x", "y")
    with pytest.raises(ProfileError, match="keeps engines in another form"):
        tensorrt.serialised(loaded)
    assert tensorrt.ordered(["x", "unused", "w"], ["w", "x"]) == ("x", "", "w")
    assert tensorrt.ordered(["x", "w"], ["arg0", "arg1"]) == ("arg0", "arg1")
    with pytest.raises(ProfileError, match=r"inputs \['arg0'\] are not those of the model, \['x', 'w'\]"):
        tensorrt.ordered(["x", "w"], ["arg0"])


def test_every_type_is_one_of_torch():
    assert all(isinstance(getattr(torch, name), torch.dtype) for name in TYPES.values())
    assert set(tensorrt.DATATYPES) <= {"BOOL", "INT32", "INT64", "FP16", "BF16", "FP32"}


def test_a_worker_imports_neither_torch_tensorrt_nor_what_is_missing(monkeypatch):
    code = "import sys, clover.backends.trt_engine; assert not {'torch', 'tensorrt', 'torch_tensorrt'} & {*sys.modules}"
    subprocess.run([sys.executable, "-P", "-c", code], check=True, env=backends.child_environment())
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(WorkerError, match=r"tensorrt cannot be imported .*install clover-inference\[tensorrt\]"):
        runtime_library(WorkerError)
