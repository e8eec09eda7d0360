"""Inference without HTTP: arrays in, an `Answer` out, errors as exceptions.

Uses the data plane as the front end does (open, write, submit, read, close); `await` costs a Future per request.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clover.errors import BadRequest, DeadlineMissed, ModelFailed, RequestError, TooLarge, Unavailable
from clover.interfaces import Model
from clover.interfaces import Ticket as AnyTicket
from clover.runtime.embedded_inputs import prepare
from clover.runtime.memory.bytes_codec import split_row
from clover.tenants import Tenant
from clover.types import FamilySpec, Receipt, TensorSpec

_ERRORS: dict[int, type[RequestError]] = {
    one.status: one for one in (BadRequest, TooLarge, ModelFailed, Unavailable, DeadlineMissed)
}


class Answer:
    """The answer of a model, and what it cost.

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
        """Return the label of each row's largest value in `output` (by default the first that has labels); raises
        ValueError if there are none."""
        for tensor in self._spec.outputs:
            if tensor.labels and output in ("", tensor.name):
                best = self.outputs[tensor.name].reshape(len(self.variants), -1).argmax(axis=1)
                return [tensor.labels[index] for index in best.tolist()]
        raise ValueError(f"output {output!r} has no labels" if output else "no output of this family has labels")

    @property
    def label(self) -> str:
        """The label of the only row; raises ValueError for several rows."""
        if len(self.variants) != 1:
            raise ValueError("several rows were asked for: use labels()")
        return self.labels()[0]


async def infer(
    router: Model,
    inputs: Mapping[str, Any],
    *,
    min_accuracy: float = 0.0,
    timeout_ns: int = 0,
    cascade: bool = True,
    tenant: Tenant | None = None,
) -> Answer:
    """Ask `router` on its own loop, for `tenant` if there is one.  Raises the RequestError that the front end would
    answer with."""
    rows, prepared = prepare(router.spec, inputs)
    ticket = router.open(rows, tenant=tenant)
    if tenant is not None:
        ticket.client = tenant.client
        timeout_ns, min_accuracy = timeout_ns or tenant.timeout_ns, min_accuracy or tenant.min_accuracy
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


def _answer(router: Model, ticket: AnyTicket) -> Answer:
    spec = router.spec
    outputs: dict[str, NDArray[Any]] = {}
    for index, tensor in enumerate(spec.outputs):
        rows = router.read(ticket, index)
        outputs[tensor.name] = _elements(tensor, rows) if isinstance(rows, list) else rows.copy()
    names = tuple(spec.variants[lane].name for lane in ticket.variants)
    return Answer(spec, outputs, router.receipt(ticket), names)


def _elements(tensor: TensorSpec, rows: list[bytes]) -> NDArray[Any]:
    """Return rows in OIP form as an object array [rows, *shape] of bytes (variable shapes: [rows, elements])."""
    out: list[list[bytes]] = []
    for row in rows:
        try:
            out.append(split_row(row))
        except ValueError:
            raise ModelFailed("the model wrote a BYTES output that is not well formed") from None
    if len({len(row) for row in out}) != 1:
        raise ModelFailed(f"output {tensor.name!r} differs in shape between the rows of one request; send them apart")
    array = np.empty((len(out), len(out[0])), dtype=object)
    for index, elements in enumerate(out):
        array[index] = elements
    return array if tensor.variable else array.reshape(len(out), *tensor.shape)
