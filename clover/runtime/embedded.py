"""Inference without HTTP: arrays in, an `Answer` out, errors as exceptions.

Enters the data plane where the front end does (open, write, submit, read, close); a Future per request is the price of
`await`.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clover.errors import BadRequest, DeadlineMissed, ModelFailed, RequestError, Unavailable
from clover.interfaces import Ticket as AnyTicket
from clover.runtime.router import Router
from clover.runtime.slab import DTYPES
from clover.runtime.tickets import Ticket
from clover.types import FamilySpec, Receipt, TensorSpec

_ERRORS: dict[int, type[RequestError]] = {500: ModelFailed, 503: Unavailable, 504: DeadlineMissed}


class Answer:
    """What the model said, and what it cost.

    `outputs`: per output name an array with a leading row axis (BYTES: object array of bytes), owned by the caller.
    `variants`: the variant that answered each row; in a cascade `receipt.path` has those that were asked before it.
    """

    __slots__ = ("_spec", "outputs", "receipt", "variants")

    def __init__(
        self, spec: FamilySpec, outputs: dict[str, NDArray[Any]], receipt: Receipt, variants: tuple[str, ...]
    ) -> None:
        self._spec = spec
        self.outputs = outputs
        self.receipt = receipt
        self.variants = variants

    def __repr__(self) -> str:
        shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in self.outputs.items())
        return f"<Answer {shapes} by {self.receipt.variant}>"

    def __getitem__(self, name: str) -> NDArray[Any]:
        return self.outputs[name]

    def labels(self, output: str = "") -> list[str]:
        """The label of each row's largest value in `output` (by default the first that has labels); ValueError where
        there are none."""
        for tensor in self._spec.outputs:
            if tensor.labels and output in ("", tensor.name):
                best = self.outputs[tensor.name].reshape(len(self.variants), -1).argmax(axis=1)
                return [tensor.labels[index] for index in best.tolist()]
        raise ValueError(f"output {output!r} has no labels" if output else "no output of this family has labels")

    @property
    def label(self) -> str:
        """The label of the one row asked for; ValueError for several."""
        if len(self.variants) != 1:
            raise ValueError("several rows were asked for: use labels()")
        return self.labels()[0]


async def infer(
    router: Router,
    inputs: Mapping[str, Any],
    *,
    min_accuracy: float = 0.0,
    timeout_ns: int = 0,
    cascade: bool = True,
) -> Answer:
    """Ask `router` on its own loop.  Raises the RequestError that the front end would answer with."""
    rows, prepared = prepare(router.spec, inputs)
    ticket = router.open(rows)
    try:
        for index, (array, dims) in enumerate(prepared):
            if isinstance(array, list):
                router.write_elements(ticket, index, array, dims)
            else:
                router.write(ticket, index, array)
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def finished(_: AnyTicket) -> None:
            if not done.done():
                done.set_result(None)

        router.submit(ticket, finished, timeout_ns=timeout_ns, min_accuracy=min_accuracy, cascade=cascade)
        await done
        if ticket.status != 200:
            raise _ERRORS.get(ticket.status, RequestError)(ticket.error, retry_after_s=ticket.retry_after_s)
        return _answer(router, ticket)
    finally:
        router.close(ticket)


def _answer(router: Router, ticket: Ticket) -> Answer:
    spec = router.spec
    outputs: dict[str, NDArray[Any]] = {}
    for index, tensor in enumerate(spec.outputs):
        rows = router.read(ticket, index)
        outputs[tensor.name] = _elements(tensor, rows) if isinstance(rows, list) else rows.copy()
    names = tuple(spec.variants[lane].name for lane in ticket.variants)
    return Answer(spec, outputs, router.receipt(ticket), names)


Prepared = tuple[NDArray[Any] | list[bytes], tuple[int, ...]]
"""Rows of one input as the router takes them, and the shape of one row."""


def prepare(spec: FamilySpec, inputs: Mapping[str, Any]) -> tuple[int, list[Prepared]]:
    """How many rows, and each declared input as the router takes it.  An array of a row's rank is one row.

    Raises BadRequest where an input is missing, unknown, of another type, or of another number of rows.
    """
    known = {tensor.name for tensor in spec.inputs}
    for name in inputs:
        if name not in known:
            raise BadRequest(f"unknown input {name!r}; this model takes {', '.join(sorted(known))}")
    out: list[Prepared] = []
    counts = set()
    for tensor in spec.inputs:
        if tensor.name not in inputs:
            raise BadRequest(f"input {tensor.name!r} is missing")
        array = _typed(tensor, inputs[tensor.name])
        if array.ndim == len(tensor.shape):
            array = array[np.newaxis]
        elif array.ndim != len(tensor.shape) + 1:
            raise BadRequest(
                f"input {tensor.name!r} has {array.ndim} axes; one row has {len(tensor.shape)}, several one more"
            )
        counts.add(len(array))
        if tensor.datatype == "BYTES":
            _fits(tensor, array.shape[1:])
            out.append(([_packed(row) for row in array.reshape(len(array), -1)], array.shape[1:]))
        else:
            out.append((array, array.shape[1:]))
    if len(counts) != 1:
        raise BadRequest(f"the inputs differ in their number of rows: {sorted(counts)}")
    return counts.pop(), out


def _typed(tensor: TensorSpec, value: Any) -> NDArray[Any]:
    if tensor.datatype == "BYTES":
        return np.asarray(value, dtype=object)
    dtype = DTYPES[tensor.datatype]
    try:
        array = np.asarray(value)
        if array.dtype != dtype and not np.can_cast(array.dtype, dtype, "same_kind") and array.size:
            raise TypeError
        return array.astype(dtype, copy=False)
    except (TypeError, ValueError) as error:
        raise BadRequest(f"input {tensor.name!r} cannot be taken for {tensor.datatype}") from error


def _fits(tensor: TensorSpec, shape: tuple[int, ...]) -> None:
    if any(axis != declared for axis, declared in zip(shape, tensor.shape, strict=True) if declared >= 0):
        raise BadRequest(f"input {tensor.name!r} has rows of shape {list(shape)} instead of {list(tensor.shape)}")


def _packed(row: Iterable[Any]) -> bytes:
    """A row of BYTES elements in OIP form."""
    parts = []
    for element in row:
        if isinstance(element, str):
            element = element.encode()
        if not isinstance(element, bytes | bytearray | memoryview):
            raise BadRequest("the elements of a BYTES input are str or bytes")
        parts += [struct.pack("<I", len(element)), bytes(element)]
    return b"".join(parts)


def _elements(tensor: TensorSpec, rows: list[bytes]) -> NDArray[Any]:
    """Rows in OIP form as an object array [rows, *shape] of bytes (variable shapes: [rows, elements])."""
    out: list[list[bytes]] = []
    for row in rows:
        at, elements = 0, []
        while at + 4 <= len(row):
            size = int.from_bytes(row[at : at + 4], "little")
            elements.append(row[at + 4 : at + 4 + size])
            at += 4 + size
        if at != len(row):
            raise ModelFailed("the model wrote a BYTES output that is not well formed")
        out.append(elements)
    if len({len(row) for row in out}) != 1:
        raise ModelFailed(f"output {tensor.name!r} differs in shape between the rows of one request; send them apart")
    array = np.empty((len(out), len(out[0])), dtype=object)
    for index, elements in enumerate(out):
        array[index] = elements
    return array if tensor.variable else array.reshape(len(out), *tensor.shape)
