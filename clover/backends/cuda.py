"""Models on a GPU, for a worker that speaks NumPy: arrays in, arrays out.

Rows go to the device in one asynchronous copy an input, out of the memory the caller holds: a worker registers its slab
with CUDA, so that the device reads what the server wrote.  Answers come back into page-locked buffers that the next
batch overwrites.  The host sleeps until they are there, instead of spinning as CUDA does by itself: a spinning core is
energy.

**Recorded launches.**  A small model is a dozen kernels of microseconds, and launching them costs more than running
them.  If every row has one shape, the launches of some batch sizes are recorded once as CUDA graphs, over inputs that
keep their addresses, and replayed as one.  A batch of another size fills the next larger one: what the rows behind it
hold is computed and not returned, so a third more rows are computed at most.  That is right only if the model's host
code takes no decision from the data and no row depends on another, so each recording is replayed on made-up rows, all
of its own and as few as it may be used for, and compared with the model itself.  If recording fails or a replay
differs, nothing is replayed and the log says why.  That takes seconds, so profiling does it: later workers record
without comparing, or not at all (`clover.worker.frames.Recording`).  `parameters.cuda_graphs = false` of a variant
turns it off.

**Errors.**  Out of memory fails the batch only.  Any other error of CUDA leaves this process's context unusable, so it
becomes a WorkerError, which ends the worker.
"""

from __future__ import annotations

import bisect
import contextlib
import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from clover.backends import cuda_errors, parity
from clover.backends.overlap import Overlap, cuda_streams, possible
from clover.backends.targets import Target
from clover.backends.tensors import to_arrays, to_tensor, torch_dtype
from clover.errors import ProfileError, WorkerError, says_out_of_memory
from clover.types import FamilySpec, Precision, TensorSpec, VariantSpec

if TYPE_CHECKING:
    import torch

_log = logging.getLogger("clover.backends")

# --- which device -----------------------------------------------------------------------------------------------------


def device_for(visible: str) -> str:
    """Return the torch device of a worker whose CUDA_VISIBLE_DEVICES is `visible` (and already set): "cpu" if it is
    empty.  Raises WorkerError if a GPU is named and torch finds none; never falls back to the CPU."""
    if not visible:
        return "cpu"
    if reason := _unusable():
        raise WorkerError(f"no GPU answers to {visible}: {reason}")
    return "cuda"


def for_building(variant: VariantSpec, target: Target) -> str:
    """Return the torch device to compile `variant` on for `target`, prepared for its precision.  Raises ProfileError if
    this process does not see the slice, or sees another GPU."""
    import torch

    if not target.visible:
        raise ProfileError(f"to compile for {target.profile} of {target.gpu}, the instance must exist: create it first")
    if reason := _unusable():
        raise ProfileError(f"no GPU answers to {target.visible}: {reason}")
    found = torch.cuda.get_device_name(0)
    # A slice is called "NVIDIA A100-SXM4-40GB MIG 2g.10gb".
    if not found.startswith(target.gpu):
        raise ProfileError(f"{target.visible} is a {found}, not a {target.gpu}")
    use_precision(variant.precision)
    return "cuda"


def use_precision(precision: Precision) -> None:
    """Let CUDA round the factors of products to TF32, or not, in all of this process from now on.  Torch's own default
    is no for matrices and yes for convolutions."""
    import torch

    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    torch.backends.cudnn.allow_tf32 = precision == "tf32"


def _unusable() -> str:
    import torch

    if torch.cuda.is_available():
        return ""
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is a build without CUDA"
    return f"torch {torch.__version__} (for CUDA {torch.version.cuda}) finds no device: see `nvidia-smi` for the driver"


def recorded_sizes(most: int) -> list[int]:
    """Return the batch sizes to record for batches of up to `most` rows: 1, 2, 3, 4, 6, 8, 12, ... and `most`, so that
    the next larger one has less than half as many rows more."""
    sizes = {rows for power in range(most.bit_length()) for rows in (1 << power, 3 << power) if rows <= most}
    return sorted(sizes | {most})


# --- running ----------------------------------------------------------------------------------------------------------


class Recording(Protocol):
    """The recorded launches of one batch size."""

    outputs: Any
    """What the model returned when it was recorded: each replay writes there."""

    def replay(self) -> None:
        """Run the launches again, on what the inputs hold now."""


class Runner:
    """A model on the device as a function from arrays to arrays.  What it returns is overwritten by the next call.

    `call` takes and returns tensors on the device, of the declared types.  `graphs`: whether its launches may be
    recorded, which `record_launches` does.  `device` and `record` differ in tests only.
    """

    def __init__(
        self,
        call: Callable[..., Any],
        family: FamilySpec,
        variant: VariantSpec,
        *,
        graphs: bool,
        device: str = "cuda",
        record: Callable[[Callable[..., Any], Sequence[torch.Tensor]], Recording] | None = None,
    ) -> None:
        import torch

        self._torch = torch
        self._call = call
        self._family = family
        self._variant = variant
        self._device = device
        self._recordings: dict[int, Recording] = {}
        self._sizes: list[int] = []
        self._record = record
        self.replay_fault: str | None = None
        """Why launches that were recorded and compared are not replayed, "" if they are; None if nothing was compared,
        or memory ran out."""
        on_gpu = device == "cuda"
        if on_gpu:
            use_precision(variant.precision)
            self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            self._done = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        rows = family.max_batch
        with torch.inference_mode():
            self._inputs = [
                None if t.variable else torch.zeros((rows, *t.bound), dtype=torch_dtype(t), device=device)
                for t in family.model_inputs(variant)
            ]
            self._outputs = [self._buffer(tensor, rows, pinned=on_gpu) for tensor in family.model_outputs(variant)]
        turned_off = not variant.parameters.get("cuda_graphs", True)
        self._may_record = graphs and not turned_off and all(there is not None for there in self._inputs)
        self.overlap = Overlap(self, family, variant, cuda_streams()) if on_gpu and possible(family, variant) else None
        """How a worker has two batches in flight; None if it runs one after the other."""

    @property
    def recorded(self) -> tuple[int, ...]:
        """The batch sizes whose launches are replayed."""
        return tuple(self._recordings)

    def _buffer(self, tensor: TensorSpec, rows: int, *, pinned: bool) -> tuple[torch.Tensor, NDArray[Any]] | None:
        if tensor.variable:
            return None
        made = self._torch.empty((rows, *tensor.bound), dtype=torch_dtype(tensor), pin_memory=pinned)
        return made, to_arrays(made)[0]

    def __call__(self, inputs: list[NDArray[Any]]) -> list[NDArray[Any]]:
        """Return outputs for a batch.  Raises what the model raises, and WorkerError if the GPU fails."""
        try:
            with self._torch.inference_mode(), self._on_stream():
                rows = len(inputs[0])
                given = [self._put(index, array, rows) for index, array in enumerate(inputs)]
                answers = self._fetch(self._launch(given, rows), rows)
                self._wait()
        except RuntimeError as error:
            if cuda_errors.fatal(error):
                raise cuda_errors.ended(error) from error
            raise
        return answers

    def launch(self, given: Sequence[torch.Tensor], rows: int) -> list[Any]:
        """Launch the model on `given`, tensors of `rows` rows anywhere on the device, in the current stream; return
        what it returns, which the next launch may overwrite."""
        if self._recordings:
            for there, mine in zip(self._inputs, given, strict=True):
                assert there is not None  # or nothing would be recorded
                there[:rows].copy_(mine)
        return self._launch(given, rows)

    def _launch(self, given: Sequence[torch.Tensor], rows: int) -> list[Any]:
        """Launch the model on `given`, or replay its launches on the inputs that they read."""
        at = bisect.bisect_left(self._sizes, rows)
        if at == len(self._sizes):  # nothing is recorded
            if self._device == "cuda":  # a recording holds its precision; the process may have had another since
                use_precision(self._variant.precision)
            result = self._call(*given)
            return list(result) if isinstance(result, (tuple, list)) else [result]
        size = self._sizes[at]
        recording = self._recordings[size]
        recording.replay()
        outputs = recording.outputs
        parts = list(outputs) if isinstance(outputs, (tuple, list)) else [outputs]
        return parts if size == rows else [part[:rows] for part in parts]

    def _put(self, index: int, array: NDArray[Any], rows: int) -> torch.Tensor:
        """Copy one input to the device, into the buffer that recordings read if there is one; return it there."""
        source = to_tensor(array, self._family.model_inputs(self._variant)[index])
        there = self._inputs[index]
        if there is None:
            return source.to(self._device, non_blocking=True)
        place = there[:rows]
        place.copy_(source, non_blocking=True)
        return place

    def _fetch(self, parts: list[Any], rows: int) -> list[NDArray[Any]]:
        """Return what the model returned as arrays, in the page-locked buffers if it is as declared; not there before
        `_wait` returns."""
        answers: list[NDArray[Any]] = []
        for part, buffer in zip(parts, [*self._outputs, *[None] * len(parts)], strict=False):
            if not isinstance(part, self._torch.Tensor):
                raise TypeError(f"the model returned {type(part).__name__} where a tensor is declared")
            if buffer is None or buffer[0][:rows].shape != part.shape or buffer[0].dtype != part.dtype:
                answers += to_arrays(part.cpu())  # of variable shape, or not as declared: the caller checks that
                continue
            buffer[0][:rows].copy_(part, non_blocking=True)
            answers.append(buffer[1][:rows])
        return answers

    def _on_stream(self) -> contextlib.AbstractContextManager[Any]:
        return self._torch.cuda.stream(self._stream) if self._device == "cuda" else contextlib.nullcontext()

    def _wait(self) -> None:
        if self._device == "cuda":
            self._done.record(self._stream)
            self._done.synchronize()

    # --- recording ------------------------------------------------------------------------------------------------

    def record_launches(self, *, check: bool = True) -> None:
        """Record `recorded_sizes` if that may be, and `check` each against the model; raises what the model raises."""
        if not self._may_record:
            return
        record = self._record or _Graphs(self)
        made: dict[int, Recording] = {}
        try:
            with self._torch.inference_mode(), self._on_stream():
                # The largest first: what it frees in the shared pool is room for every smaller one, never the reverse.
                for rows in reversed(recorded_sizes(self._family.max_batch)):
                    made[rows] = record(self._call, [there[:rows] for there in self._inputs if there is not None])
            made = dict(reversed(made.items()))
            self._wait()
            wrong = self._differs(made) if check else ""
        except RuntimeError as error:
            wrong = " ".join(str(error).split())[:300]
        if check and not says_out_of_memory(wrong):
            self.replay_fault = wrong
        if wrong:
            made.clear()
            name = self._variant.name
            hint = "parameters.cuda_graphs = false of the variant skips the attempt"
            _log.warning("%s runs without CUDA graphs: %s (%s)", name, wrong, hint)
            self._still_works()
        self._replay(made)

    def _replay(self, recordings: dict[int, Recording]) -> None:
        """Replay `recordings`, by size in ascending order, from now on."""
        self._recordings, self._sizes = recordings, list(recordings)

    def _differs(self, made: dict[int, Recording]) -> str:
        """Return what is wrong with a replay on fresh rows; "" if all give what the model gives."""
        generator = np.random.default_rng(1)
        takes, gives = self._family.model_inputs(self._variant), self._family.model_outputs(self._variant)
        fewer = 0
        for size, recording in made.items():
            for rows in (size, fewer + 1):
                inputs = [parity.made_up(tensor, rows, generator) for tensor in takes]
                self._replay({})
                truth = [array.copy() for array in self(inputs)]
                self._replay({size: recording})
                _, wrong = parity.compare(gives, self(inputs), truth, self._variant.precision)
                if wrong:
                    what = f"{size} rows" if rows == size else f"{size} rows, used for {rows},"
                    return f"the recorded launches of {what} do not do what the model does: {wrong}"
            fewer = size
        return ""

    def _still_works(self) -> None:
        """Run one row without recordings, as a failed recording may have broken more; raises what the model raises."""
        self._replay({})
        generator = np.random.default_rng(2)
        self([parity.made_up(tensor, 1, generator) for tensor in self._family.model_inputs(self._variant)])


class _Graphs:
    """Makes CUDA graphs that share one memory pool: they are replayed one at a time, and their outputs, which are held,
    lie apart in it."""

    def __init__(self, runner: Runner) -> None:
        import torch

        self._torch = torch
        self._stream = runner._stream
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, call: Callable[..., Any], inputs: Sequence[torch.Tensor]) -> Recording:
        torch = self._torch
        for _ in range(2):  # libraries set themselves up in the first runs, which cannot be recorded
            call(*inputs)
        self._stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        try:
            # A capture that fails leaves its stream current; the outer context takes it back.
            with torch.cuda.stream(self._stream), torch.cuda.graph(graph, pool=self._pool, stream=self._stream):
                outputs = call(*inputs)
        except RuntimeError:
            self._end_allocating()
            raise
        return _Graph(graph, outputs)

    def _end_allocating(self) -> None:
        """Have torch's allocator end what a capture that failed began: while it takes one to be under way, it gives no
        cached memory back when memory runs out.  Nothing happens if it did so by itself."""
        with contextlib.suppress(RuntimeError, AttributeError):
            self._torch._C._cuda_endAllocateToPool(self._torch.cuda.current_device(), self._pool)


class _Graph:
    """A CUDA graph and the outputs that it writes."""

    def __init__(self, graph: torch.cuda.CUDAGraph, outputs: Any) -> None:
        self._graph = graph
        self.outputs = outputs

    def replay(self) -> None:
        self._graph.replay()
