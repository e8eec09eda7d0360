"""A hot spare: a worker that has what a start on a GPU takes longest for, and no weights.

It has its CUDA context, the libraries that a first product of matrices loads, and the inputs of the slab registered; on
an emulated slice it is attached.  So it waits for an ADOPT frame with the order of a worker, and goes on as that worker
would from there.  The context draws no more watts, as a hot spare only is where another worker is.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Sequence

from clover.errors import WorkerError
from clover.worker import frames, pinned
from clover.worker.batches import Batches
from clover.worker.loop import ParentGone, send_state

_log = logging.getLogger("clover.worker")

_PRODUCT = 64
"""Rows and columns of the matrices whose product loads the libraries of CUDA."""


def warm_context(order: frames.WorkerOrder, sides: Sequence[Batches]) -> None:
    """Make the context of the GPU of `order`, load its libraries, and register the slab that `sides` gather from; do
    nothing on CPU cores."""
    if not order.visible_devices or order.emulated is not None:
        return
    import torch

    if not torch.cuda.is_available():
        raise WorkerError(f"torch finds no GPU at {order.place or order.visible_devices}")
    matrix = torch.ones((_PRODUCT, _PRODUCT), device="cuda")
    torch.mm(matrix, matrix)
    torch.cuda.synchronize()
    pinned.pin(sides, order.max_batch)


def stand_by(control: socket.socket) -> frames.WorkerOrder | None:
    """Report that this process is a hot spare, and return the order that it is to take over; None if it is to end.

    Raises ParentGone if the server has ended.
    """
    send_state(control, frames.WorkerState(state="spare"))
    try:
        frame = frames.receive(control)
    except OSError as error:
        raise ParentGone from error
    if frame is None:
        raise ParentGone
    kind, payload, _ = frame
    if kind is frames.Kind.EXIT:
        return None
    if kind is not frames.Kind.ADOPT:
        raise WorkerError(f"a hot spare was sent {kind.name}")
    return frames.decode(payload, frames.Adopt).order
