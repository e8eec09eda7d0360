"""Two batches in flight on a GPU: while one computes, the next is copied in and the one before is copied out.

    copy-in    n+1        n+2
    compute    n          n+1        n+2
    copy-out              n          n+1

The three streams are the process's, shared by all its variants, so that only one batch computes at a time whatever
variant it is for, and batches end in the order in which they began.  Events order the streams: a batch computes once it
is copied in, and is copied out once it is computed.  Batches take turns with two sets of buffers on the device and in
page-locked memory; a set is free again when its batch was finished, and no third may begin before that.

Recorded launches read inputs and write outputs at addresses of their own, so a batch is copied there and from there on
the device, which is fast, in the stream that computes.  Inputs and outputs have to be of fixed shape;
`parameters.overlap = false` of a variant turns all of it off.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from numpy.typing import NDArray

from clover.backends import cuda_errors
from clover.backends.tensors import to_arrays, to_tensor, torch_dtype
from clover.types import FamilySpec, VariantSpec

if TYPE_CHECKING:
    import torch

IN_FLIGHT = 2
"""Batches that may be begun and not finished; a worker is given as many."""


class StreamEvent(Protocol):
    """A point in a stream, as `torch.cuda.Event` is."""

    def query(self) -> bool:
        """Return whether all before it is done."""

    def synchronize(self) -> None:
        """Wait until all before it is done."""


class WorkStream(Protocol):
    """Work that the device does in order."""

    def run(self, work: Callable[[], None]) -> None:
        """Call `work`, whose launches go to this stream."""

    def record(self, event: Any) -> None:
        """Place `event` behind all work so far."""

    def after(self, event: Any) -> None:
        """Have the work that follows wait for `event`."""


class StreamSet(Protocol):
    """The three streams of a process, and how its events are made: `sleeping` ones have the host sleep, not spin."""

    @property
    def copy_in(self) -> WorkStream: ...
    @property
    def compute(self) -> WorkStream: ...
    @property
    def copy_out(self) -> WorkStream: ...

    def event(self, *, sleeping: bool = False) -> StreamEvent:
        """Return a new event."""


class OnDevice(Protocol):
    """What is needed of a `clover.backends.cuda.Runner`."""

    def launch(self, given: Sequence[torch.Tensor], rows: int) -> list[Any]:
        """Launch the model on tensors of `rows` rows; what it returns may be overwritten by the next launch."""


class InFlight:
    """A batch that was begun: `done` is behind its last copy, `answers` are there then."""

    def __init__(self, done: StreamEvent) -> None:
        self.done = done
        self.parts: list[Any] = []
        self.answers: list[NDArray[Any]] = []

    def ready(self) -> bool:
        """Return whether finishing it would not wait; true as well if the GPU failed, which finishing it says."""
        try:
            return self.done.query()
        except RuntimeError:
            return True


class _Buffers:
    """One set: inputs and outputs on the device, outputs in page-locked memory with the arrays over them, and events
    behind each of the three steps."""

    def __init__(self, family: FamilySpec, streams: StreamSet, device: str) -> None:
        import torch

        rows = family.max_batch

        def made(tensor: Any, **where: Any) -> torch.Tensor:
            return torch.zeros((rows, *tensor.bound), dtype=torch_dtype(tensor), **where)

        self.inputs = [made(tensor, device=device) for tensor in family.inputs]
        self.outputs = [made(tensor, device=device) for tensor in family.outputs]
        self.host = [made(tensor, pin_memory=device == "cuda") for tensor in family.outputs]
        self.arrays = [to_arrays(tensor)[0] for tensor in self.host]
        self.copied, self.computed = streams.event(), streams.event()
        self.done = streams.event(sleeping=True)


class Overlap:
    """Begins and finishes batches of one variant; `finish` in the order of `begin`, at most `IN_FLIGHT` at a time."""

    def __init__(self, runner: OnDevice, family: FamilySpec, streams: StreamSet, device: str = "cuda") -> None:
        import torch

        self._torch = torch
        self._runner = runner
        self._specs = family.inputs
        self._streams = streams
        with torch.inference_mode():
            self._sets = [_Buffers(family, streams, device) for _ in range(IN_FLIGHT)]
        self._begun = 0

    def begin(self, inputs: list[NDArray[Any]]) -> InFlight:
        """Launch a batch and return at once.  `inputs` must not change until it is finished.  Raises what the model
        raises, and WorkerError if the GPU fails."""
        mine, streams = self._sets[self._begun % IN_FLIGHT], self._streams
        flight, rows = InFlight(mine.done), len(inputs[0])
        given = [tensor[:rows] for tensor in mine.inputs]

        def copy_in() -> None:
            for there, array, spec in zip(given, inputs, self._specs, strict=True):
                there.copy_(to_tensor(array, spec), non_blocking=True)

        def compute() -> None:
            for index, part in enumerate(self._runner.launch(given, rows)):
                flight.parts.append(self._kept(part, mine.outputs[index : index + 1], rows))

        def copy_out() -> None:
            for index, part in enumerate(flight.parts):
                if self._declared(part, mine.outputs[index : index + 1], rows):
                    mine.host[index][:rows].copy_(part, non_blocking=True)
                    flight.answers.append(mine.arrays[index][:rows])
                else:  # the caller says what is wrong with it
                    flight.answers += to_arrays(part.cpu())

        try:
            with self._torch.inference_mode():
                streams.copy_in.run(copy_in)
                streams.copy_in.record(mine.copied)
                streams.compute.after(mine.copied)
                streams.compute.run(compute)
                streams.compute.record(mine.computed)
                streams.copy_out.after(mine.computed)
                streams.copy_out.run(copy_out)
                streams.copy_out.record(mine.done)
        except RuntimeError as error:
            if cuda_errors.fatal(error):
                raise cuda_errors.ended(error) from error
            raise
        self._begun += 1
        return flight

    def finish(self, flight: InFlight) -> list[NDArray[Any]]:
        """Wait for a batch and return its answers, which the next but one overwrites.  Raises WorkerError if the GPU
        failed."""
        try:
            flight.done.synchronize()
        except RuntimeError as error:
            if cuda_errors.fatal(error):
                raise cuda_errors.ended(error) from error
            raise
        flight.parts.clear()  # not before: the copies read them
        return flight.answers

    def _declared(self, part: Any, room: Sequence[torch.Tensor], rows: int) -> bool:
        return bool(room) and part.shape == room[0][:rows].shape and part.dtype == room[0].dtype

    def _kept(self, part: Any, room: Sequence[torch.Tensor], rows: int) -> Any:
        """Return `part` where no later launch overwrites it."""
        if not isinstance(part, self._torch.Tensor):
            raise TypeError(f"the model returned {type(part).__name__} where a tensor is declared")
        if not self._declared(part, room, rows):
            return part.clone()
        room[0][:rows].copy_(part)
        return room[0][:rows]


def possible(family: FamilySpec, variant: VariantSpec) -> bool:
    """Return whether batches of `variant` may overlap: all tensors are of fixed shape, no steps run around the model
    (they take rows from the slab themselves), and it is not turned off."""
    fixed = not any(tensor.variable for tensor in (*family.inputs, *family.outputs))
    return fixed and not family.stepped and bool(variant.parameters.get("overlap", True))


class _CudaStream:
    """A stream of torch's."""

    def __init__(self) -> None:
        import torch

        self._torch = torch
        self._stream: Any = torch.cuda.Stream()  # type: ignore[no-untyped-call]

    def run(self, work: Callable[[], None]) -> None:
        with self._torch.cuda.stream(self._stream):
            work()

    def record(self, event: Any) -> None:
        event.record(self._stream)

    def after(self, event: Any) -> None:
        self._stream.wait_event(event)


class CudaStreams:
    """The streams of this process on its GPU."""

    def __init__(self) -> None:
        self.copy_in, self.compute, self.copy_out = _CudaStream(), _CudaStream(), _CudaStream()

    def event(self, *, sleeping: bool = False) -> StreamEvent:
        """See `StreamSet.event`."""
        import torch

        made: StreamEvent = torch.cuda.Event(blocking=sleeping)  # type: ignore[no-untyped-call]
        return made


@functools.cache
def cuda_streams() -> CudaStreams:
    """Return the streams that all variants of this process share."""
    return CudaStreams()
