"""Gets a family's evaluation rows and metric from a process confined as workers are (`clover.worker.evaluator`).

What comes back is not trusted: it is bounded in time and size, and checked as if the family had been asked here.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

import msgspec
from numpy.typing import NDArray

from clover.backends import child_environment
from clover.errors import ConfigError, ProfileError
from clover.families.array_codec import pack, unpack
from clover.families.evaluation import check_rows
from clover.malformed import MALFORMED
from clover.types import FamilySpec, SandboxOrder
from clover.worker import evaluator

ANSWER_S = 900.0
"""Seconds that a family's loader or metric may take."""
_MOST_BYTES = 8 << 30
_END_S = 2.0


class EvaluationProcess:
    """The process for one family, from entering the context to leaving it; it ends with this one, too.  Its methods
    wait, for `answer_s` seconds at most, and are called by one thread at a time."""

    def __init__(self, spec: FamilySpec, sandbox: SandboxOrder, answer_s: float = ANSWER_S) -> None:
        self._spec = spec
        self._sandbox = sandbox
        self._answer_s = answer_s
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            self._ours, theirs = map(stack.enter_context, socket.socketpair())
            self._ours.settimeout(self._answer_s)
            tied, ours = os.pipe()
            stack.callback(os.close, ours)
            try:
                self._process = subprocess.Popen(
                    [sys.executable, "-P", "-m", "clover.worker.evaluator", str(theirs.fileno()), str(tied)],
                    stdin=subprocess.DEVNULL,
                    stdout=2,  # what the family prints is no answer
                    env=child_environment(),
                    pass_fds=(theirs.fileno(), tied),
                    start_new_session=True,
                )
            finally:
                os.close(tied)
                theirs.close()
            stack.callback(self._end)
            with contextlib.suppress(ConnectionError):  # it died already; the first answer does not come
                evaluator.send(self._ours, evaluator.EvaluationOrder(family=self._spec, sandbox=self._sandbox))
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stack.close()

    def rows(self, split: str) -> tuple[list[NDArray[Any]], NDArray[Any]]:
        """Return what `clover.families.load_evaluation` returns; raises ConfigError as it does."""
        evaluation = self._spec.evaluation
        where = f"family {self._spec.name!r}: evaluation loader {evaluation.loader if evaluation else ''!r}"
        try:
            *inputs, labels = self._ask(evaluator.EvaluationQuestion(split=split))
        except ValueError as error:
            text = str(error)
            raise ConfigError(text if text.startswith(where) else f"{where}: {text}") from error
        return check_rows(self._spec, inputs, labels, where)

    def judge(self, outputs: Mapping[str, NDArray[Any]], labels: NDArray[Any]) -> NDArray[Any]:
        """Return what the family's metric gives for `outputs` of rows with `labels`; raises ValueError with what it
        says if it fails."""
        packed = {name: pack(array) for name, array in outputs.items()}
        (scores,) = self._ask(evaluator.EvaluationQuestion(outputs=packed, labels=pack(labels)))
        return scores

    def _ask(self, question: evaluator.EvaluationQuestion) -> list[NDArray[Any]]:
        """Return the arrays of the answer to a question; raises ValueError with what went wrong."""
        try:
            evaluator.send(self._ours, question)
            data = evaluator.receive(self._ours, _MOST_BYTES)
            if data is None:
                raise ValueError(self._how_it_ended())
            reply = msgspec.msgpack.decode(data, type=evaluator.EvaluationReply)
            if reply.error:
                raise ValueError(" ".join(reply.error.split()))
            return [unpack(array) for array in reply.arrays]
        except TimeoutError as error:
            late = f"the evaluation of family {self._spec.name!r} took more than {self._answer_s:g} s"
            raise ProfileError(late) from error
        except OSError as error:  # it has ended, or was left
            raise ValueError(self._how_it_ended()) from error
        except MALFORMED as error:
            raise ValueError(str(error)) from error

    def _how_it_ended(self) -> str:
        with contextlib.suppress(subprocess.TimeoutExpired):
            status = self._process.wait(_END_S)
            how = signal.Signals(-status).name if status < 0 else f"exit status {status}"
            return f"its process ended ({how})"
        return "its process broke the connection"

    def _end(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
