"""The calls that a client makes, without I/O: each is a generator that `clover.client.clients` drives."""

from __future__ import annotations

import base64
import json
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from clover.client import tallies
from clover.client.messages import Call, Reply, Retries, Send, Wait, error_of
from clover.client.receipts import CallReceipt, receipt_of
from clover.client.tensors import TensorInfo, WireTensor, arrays_of, unpack
from clover.errors import BadRequest, DeadlineMissed, ModelFailed

if TYPE_CHECKING:
    from clover.client.stepping import OwnSteps
    from clover.steps import PreparedRows

_MOST_PARAMETER_US = 1 << 53
_JSON = {"content-type": "application/json"}

Request = Callable[[float], tuple[Mapping[str, str], bytes]]
"""Makes the headers and the body of a try, with so many seconds left."""


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """A model as its metadata (`said`) describes it.

    `inputs` and `outputs` are what the caller gives and gets.  If the client runs some of the model's steps (`steps`),
    other tensors travel (`sent`).
    """

    name: str
    version: str
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    said: Mapping[str, Any] = field(repr=False, default_factory=dict)
    steps: OwnSteps | None = field(repr=False, default=None)
    sent: tuple[TensorInfo, ...] = field(repr=False, default=())

    def is_outdated(self, answer: object) -> bool:
        """Return whether an answer's document is of a version that was not there when the model was described."""
        version = answer.get("model_version") if isinstance(answer, Mapping) else None
        versions = self.said.get("versions") or ()
        return bool(version and versions) and version not in versions


@dataclass(frozen=True, slots=True)
class Result:
    """The answer to `infer`: `outputs` by name, each with a leading row axis, and what it cost (`receipt`; None from a
    server that gives none)."""

    model: str
    version: str
    outputs: dict[str, NDArray[Any]]
    receipt: CallReceipt | None
    declared: tuple[TensorInfo, ...] = field(repr=False, default=())

    def __getitem__(self, name: str) -> NDArray[Any]:
        return self.outputs[name]

    def labels(self, output: str = "") -> list[str]:
        """Return the label of each row's largest value in `output` (by default the first that has labels); raises
        ValueError if there are none."""
        for tensor in self.declared:
            if tensor.labels and tensor.name in self.outputs and output in ("", tensor.name):
                rows = self.outputs[tensor.name]
                return [tensor.labels[at] for at in rows.reshape(len(rows), -1).argmax(axis=1).tolist()]
        raise ValueError(f"output {output!r} has no labels" if output else "no output of this model has labels")

    @property
    def label(self) -> str:
        """The label of the only row; raises ValueError for several rows."""
        labels = self.labels()
        if len(labels) != 1:
            raise ValueError("several rows were asked for: use labels()")
        return labels[0]


@dataclass(frozen=True, slots=True)
class Asking:
    """How a call is made: at most `timeout_s` seconds with all its tries; `min_accuracy` in percent; `cascade` False
    asks one variant a row; `fresh` True takes no cached answer; `full_receipt` True asks for all of the receipt."""

    timeout_s: float
    min_accuracy: float = 0.0
    cascade: bool = True
    fresh: bool = False
    full_receipt: bool = False


@dataclass(slots=True)
class Calls:
    """The calls of one client.  `monotonic_s` is the clock of deadlines; `models` what is known of models.

    `idle_ids` are request ids that no call uses now.  All tries of a call have one id, by which a refused try keeps its
    place in the server's queue.  Calls at the same time have different ids.  Later calls use the ids again, because the
    server need not parse heads that it has seen before.  `folders` has, by model, the folder of its family, for steps
    of the client that need files of it.
    """

    retries: Retries
    headers: dict[str, str]
    monotonic_s: Callable[[], float]
    models: dict[str, ModelInfo] = field(default_factory=dict)
    idle_ids: list[str] = field(default_factory=list)
    folders: Mapping[str, Path] = field(default_factory=dict)

    def infer(self, model: str, inputs: object, asking: Asking) -> Call[Result]:
        """Ask a model; raises CloverError.

        If an answer is of a version that the model's description does not name, the description is read again.  If the
        client's steps made the request by the old description, the model is asked again.
        """
        end_s = self.monotonic_s() + asking.timeout_s
        model_info = self.models.get(model)
        info = model_info
        if info is None:
            info = yield from self.describe(model, asking.timeout_s)
        columns = arrays_of(info.inputs, inputs)
        prepared: PreparedRows | None = None
        if info.steps is not None:
            prepared = info.steps.before(columns)
            columns = prepared.inputs
        tensors = [WireTensor.from_rows(tensor, columns[tensor.name]) for tensor in info.sent or info.inputs]
        body = b"".join(tensor.data for tensor in tensors)
        inputs_said = [tensor.header() for tensor in tensors]

        def request(left_s: float) -> tuple[dict[str, str], bytes]:
            parameters: dict[str, Any] = {
                "binary_data_output": True,
                "timeout": max(1, min(int(left_s * 1e6), _MOST_PARAMETER_US)),
            }
            if asking.min_accuracy:
                parameters["clover_min_accuracy"] = asking.min_accuracy
            if not asking.cascade:
                parameters["clover_cascade"] = "off"
            if asking.full_receipt:
                parameters["clover_receipt"] = True
            text = json.dumps({"parameters": parameters, "inputs": inputs_said}).encode()
            headers = {
                "content-type": "application/octet-stream",
                "inference-header-content-length": str(len(text)),
                **({"cache-control": "no-cache"} if asking.fresh else {}),
            }
            return headers, text + body

        reply = yield from self._ask("POST", f"/v2/models/{quote(model, safe='')}/infer", request, end_s)
        receipt = receipt_of(reply.headers)
        tallies.count(model, receipt)
        said, binary = _document(reply)
        if model_info is not None and model_info.is_outdated(said):
            self.models.pop(model, None)
            if model_info.steps is not None:
                left = replace(asking, timeout_s=end_s - self.monotonic_s())
                return (yield from self.infer(model, inputs, left))
        try:
            outputs = unpack(said["outputs"], binary)
            if info.steps is not None and prepared is not None:
                outputs = info.steps.after(prepared, outputs)
            return Result(model, str(said.get("model_version", "")), outputs, receipt, info.outputs)
        except (KeyError, TypeError) as error:
            raise ModelFailed("the server's answer is no infer answer") from error

    def embed(self, model: str, texts: Sequence[str], dimensions: int | None, timeout_s: float) -> Call[NDArray[Any]]:
        """Return the embeddings of texts, float32 [texts, dimensions], by /v1/embeddings; raises CloverError."""
        asked: dict[str, Any] = {"model": model, "input": list(texts), "encoding_format": "base64"}
        if dimensions is not None:
            asked["dimensions"] = dimensions
        body = json.dumps(asked).encode()
        end_s = self.monotonic_s() + timeout_s
        reply = yield from self._ask("POST", "/v1/embeddings", lambda _: (_JSON, body), end_s)
        tallies.count(model, receipt_of(reply.headers))
        said, _ = _document(reply)
        try:
            rows = sorted(said["data"], key=lambda one: int(one["index"]))
            return np.stack([np.frombuffer(base64.b64decode(row["embedding"]), "<f4") for row in rows])
        except (KeyError, TypeError, ValueError) as error:
            raise ModelFailed("the server's answer holds no embeddings") from error

    def describe(self, model: str, timeout_s: float) -> Call[ModelInfo]:
        """Read what a model takes and gives, and keep it; raises CloverError."""
        end_s = self.monotonic_s() + timeout_s
        reply = yield from self._ask("GET", f"/v2/models/{quote(model, safe='')}", _nothing, end_s)
        said, _ = _document(reply)
        try:
            inputs = tuple(TensorInfo.from_json(tensor) for tensor in said["inputs"])
            outputs = tuple(TensorInfo.from_json(tensor) for tensor in said["outputs"])
            steps = _steps(said, self.folders.get(model))
            info = ModelInfo(
                model,
                str((said.get("versions") or [""])[-1]),
                steps.inputs if steps is not None else inputs,
                steps.outputs if steps is not None else outputs,
                said,
                steps,
                inputs,
            )
        except (KeyError, TypeError) as error:
            raise ModelFailed("the server's metadata of this model cannot be read") from error
        self.models[model] = info
        return info

    def names(self, timeout_s: float) -> Call[list[str]]:
        """Return the names of the models that are ready; raises CloverError."""
        end_s = self.monotonic_s() + timeout_s
        reply = yield from self._ask("POST", "/v2/repository/index", lambda _: (_JSON, b'{"ready": true}'), end_s)
        said, _ = _document(reply)
        return sorted({str(one["name"]) for one in said})

    def ready(self, timeout_s: float) -> Call[bool]:
        """Return whether the server is ready: False also if it cannot be reached."""
        reply: Reply = yield Send("GET", "/v2/health/ready", timeout_s, self.headers)
        return reply.status == 200

    def feedback(self, result: Result, labels: Sequence[int | float | str | None], timeout_s: float) -> Call[Any]:
        """Send the labels of an answer, one a row (None: not known); return what the server says of them."""
        if result.receipt is None or not result.receipt.feedback:
            raise BadRequest("this answer has no receipt with an id for labels")
        body = json.dumps({"id": result.receipt.feedback, "labels": list(labels)}).encode()
        path = f"/v2/models/{quote(result.model, safe='')}/feedback"
        reply: Reply = yield Send("POST", path, timeout_s, {**self.headers, **_JSON}, body)
        if reply.status != 200:
            raise error_of(reply)
        return _document(reply)[0]

    def _ask(self, method: str, path: str, request: Request, end_s: float) -> Call[Reply]:
        """Send what `request(seconds left)` returns until it is answered with 200, as often as `retries` allow and
        never past `end_s`; raises CloverError."""
        try:
            name = self.idle_ids.pop()
        except IndexError:  # not asked before, as another thread may have taken the last
            name = uuid.uuid4().hex
        try:
            return (
                yield from self._tries(Send(method, path, 0.0, {**self.headers, "x-request-id": name}), request, end_s)
            )
        finally:
            self.idle_ids.append(name)

    def _tries(self, first: Send, request: Request, end_s: float) -> Call[Reply]:
        done = 0
        while True:
            left_s = end_s - self.monotonic_s()
            if left_s <= 0.0:
                raise DeadlineMissed("the time for this call is over")
            headers, body = request(left_s)
            reply: Reply = yield Send(first.method, first.path, left_s, {**first.headers, **headers}, body)
            if reply.status == 200:
                return reply
            if reply.late:
                raise DeadlineMissed("the server did not answer in the time for this call")
            done += 1
            pause_s = self.retries.pause_s(done, reply, end_s - self.monotonic_s())
            if pause_s is None:
                raise error_of(reply)
            yield Wait(pause_s)


def _steps(said: Mapping[str, Any], folder: Path | None) -> OwnSteps | None:
    """Return the client's steps of a model, if any: without some, none of what they need is imported."""
    declared = (said.get("parameters") or {}).get("steps")
    if not declared or declared.get("run") == "worker":
        return None
    from clover.client.stepping import steps_of

    return steps_of(said, folder)


def _nothing(left_s: float) -> tuple[dict[str, str], bytes]:
    return {}, b""


def _document(reply: Reply) -> tuple[Any, memoryview]:
    """Return the JSON of an answer and the binary data behind it."""
    length = reply.headers.get("inference-header-content-length")
    body = memoryview(reply.body)
    size = int(length) if length is not None and length.isdigit() else len(body)
    try:
        return json.loads(bytes(body[:size])), body[size:]
    except (ValueError, RecursionError) as error:
        raise ModelFailed("the server's answer is not JSON") from error
