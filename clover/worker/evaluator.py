"""The process that runs a family's loader of evaluation rows and its metric: `python -m clover.worker.evaluator`.

It is confined as workers are before the first line of the family's code runs.  Its arguments are two descriptors: a
socket by which the server asks and is answered, and its lifeline.  The first message is the order; each later one is a
question, and has one answer.
"""

from __future__ import annotations

import ctypes
import os
import resource
import socket
import struct
import sys
import traceback

import msgspec
import numpy as np

from clover import families
from clover.errors import CloverError
from clover.families.array_codec import PackedArray, pack, unpack
from clover.families.evaluation import load_rows
from clover.families.loaders import describe_failure
from clover.types import FamilySpec, Record, SandboxOrder
from clover.worker import lifeline, orphans, sandbox
from clover.worker.frames import WorkerOrder

_PR_SET_NO_NEW_PRIVS = 38
_LENGTH = struct.Struct("<Q")
_TEXT = 2000


class EvaluationOrder(Record, frozen=True, kw_only=True):
    """Whose rows and metric are asked for, and how its code is confined."""

    family: FamilySpec
    sandbox: SandboxOrder


class EvaluationQuestion(Record, frozen=True, kw_only=True):
    """What is asked: the rows of `split`, or, if that is empty, how right `outputs` (by name) of rows with `labels`
    are."""

    split: str = ""
    outputs: dict[str, PackedArray] = {}
    labels: PackedArray | None = None


class EvaluationReply(Record, frozen=True, kw_only=True):
    """What the family's code gave, `arrays` (the last are the labels, or the scores); or what went wrong."""

    arrays: tuple[PackedArray, ...] = ()
    error: str = ""


def send(to: socket.socket, message: Record) -> None:
    """Send a message, its length before it."""
    data = msgspec.msgpack.encode(message)
    to.sendall(_LENGTH.pack(len(data)))
    to.sendall(data)


def receive(source: socket.socket, most: int) -> bytes | None:
    """Return the next message of at most `most` bytes; None at the end.  Raises ValueError for a longer one, and
    TimeoutError."""
    head = _exactly(source, _LENGTH.size)
    if head is None:
        return None
    (length,) = _LENGTH.unpack(head)
    if length > most:
        raise ValueError(f"a message of {length} bytes: {most} are the most")
    return _exactly(source, length)


def _exactly(source: socket.socket, count: int) -> bytes | None:
    """Return `count` bytes; None if the other end closed before."""
    data = bytearray()
    while len(data) < count:
        piece = source.recv(min(count - len(data), 1 << 20))
        if not piece:
            return None
        data += piece
    return bytes(data)


def confine(order: EvaluationOrder) -> None:
    """Give up in this process what the family's loader and metric do not need."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_NO_NEW_PRIVS)")
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    orphans.adopt()
    sandbox.confine(worker_order(order))


def worker_order(order: EvaluationOrder) -> WorkerOrder:
    """Return the order of a worker that is confined as this process is."""
    family = order.family
    return WorkerOrder(
        family=family,
        variant=family.variants[0].name,
        backend="eager",
        cores=(),
        max_batch=family.max_batch,
        sandbox=order.sandbox,
    )


def answer(spec: FamilySpec, question: EvaluationQuestion) -> EvaluationReply:
    """Return what the family's code gives for a question; raises what it raises."""
    if question.split:
        inputs, labels = load_rows(spec, question.split)
        return EvaluationReply(arrays=(*map(pack, inputs), pack(labels)))
    assert spec.evaluation is not None
    assert question.labels is not None
    metric = families.resolve(spec.evaluation.metric, spec.folder)
    # Copies: what shares the message's bytes is read-only, and a metric may work in place.
    outputs = {name: unpack(array).copy() for name, array in question.outputs.items()}
    return EvaluationReply(arrays=(pack(np.asarray(metric(outputs, unpack(question.labels).copy()))),))


def main(asked: int, tied: int) -> int:
    """Answer questions by the socket `asked` until the server closes it."""
    with socket.socket(fileno=asked) as server:
        if not lifeline.tie(tied):
            return 0
        first = receive(server, sys.maxsize)
        if first is None:
            return 0
        order = msgspec.msgpack.decode(first, type=EvaluationOrder)
        try:
            confine(order)
        except (CloverError, OSError) as error:
            send(server, EvaluationReply(error=str(error)))
            return 1
        while (line := receive(server, sys.maxsize)) is not None:
            try:
                reply = answer(order.family, msgspec.msgpack.decode(line, type=EvaluationQuestion))
            except (Exception, SystemExit) as error:
                traceback.print_exc()
                said = str(error) if isinstance(error, CloverError) else describe_failure(error)
                reply = EvaluationReply(error=(said + sandbox.hint(worker_order(order), error))[:_TEXT])
            send(server, reply)
    return 0


if __name__ == "__main__":
    status = main(int(sys.argv[1]), int(sys.argv[2]))
    sys.stderr.flush()
    os._exit(status)
