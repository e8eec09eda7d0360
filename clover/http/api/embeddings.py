"""`/v1/embeddings` and `/v1/models` as OpenAI's clients speak them, for families that declare that they embed text.

The texts of a request are its rows: they wait, are batched and are answered as those of `.../infer`, by whichever
variant the plan chooses, and the answer has the same receipt.
"""

from __future__ import annotations

import base64
import logging
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from clover.config import LimitsConfig
from clover.errors import BadRequest, ModelFailed, NotFound, RequestError
from clover.families import by_agreement
from clover.http.api import named
from clover.http.exchange import Exchange, trace_ids
from clover.http.inference import PROXIED, receipt_field
from clover.http.oip.request import parse_json
from clover.http.oip.signature import JSON_DEPTH
from clover.http.oip.tensors import Body
from clover.interfaces import Model, Ticket
from clover.runtime.memory.bytes_codec import pack_element
from clover.types import FamilySpec

log = logging.getLogger("clover.http")

PATH = "/v1/embeddings"
MODELS_PATH = "/v1/models"

_NUMPY = orjson.OPT_SERIALIZE_NUMPY


class EmbeddingAsk:
    """A request, read: its texts, the name of the model as it came, how many numbers of a vector are wanted (0: all),
    whether they are wanted as base64, and whether the receipt is wanted with every member."""

    __slots__ = ("as_base64", "dimensions", "min_accuracy", "model", "texts", "wants_receipt")

    def __init__(self, document: Any) -> None:
        """Read a request's document; raises BadRequest."""
        if type(document) is not dict:
            raise BadRequest("the body is not a JSON object")
        model, given = document.get("model"), document.get("input")
        if not isinstance(model, str):
            raise BadRequest("model is missing, or is no string")
        texts = [given] if isinstance(given, str) else given
        if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
            raise BadRequest("input is a text, or a list of texts; tokens are not taken")
        self.model: str = model
        self.texts: list[str] = texts
        self.dimensions = document.get("dimensions") or 0
        if type(self.dimensions) is not int or self.dimensions < 0:
            raise BadRequest("dimensions is not a whole number of at least 1")
        coding = document.get("encoding_format", "float")
        if coding not in ("float", "base64"):
            raise BadRequest("encoding_format is float or base64")
        self.as_base64 = coding == "base64"
        self.min_accuracy = document.get("clover_min_accuracy", 0.0)
        if type(self.min_accuracy) not in (int, float) or self.min_accuracy < 0:
            raise BadRequest("clover_min_accuracy is not a number of at least 0")
        self.wants_receipt = document.get("clover_receipt", False)
        if type(self.wants_receipt) is not bool:
            raise BadRequest("clover_receipt is not true or false")


class EmbeddingRoutes:
    """The handlers; `models` returns every family by its name."""

    def __init__(self, models: Callable[[], Mapping[str, Model]], limits: LimitsConfig) -> None:
        self._models = models
        self._limits = limits

    def list_models(self, exchange: Exchange, body: Body, name: str) -> None:
        """Answer GET /v1/models: the families that embed."""
        models = [  # a version of its own, NAME@VERSION while a new one is being rolled out, is no further model
            _describe_model(name)
            for name, model in self._models().items()
            if embeds(model.spec) and named.client_name(name) == name
        ]
        exchange.finish_json({"object": "list", "data": models})

    def show_model(self, exchange: Exchange, body: Body, name: str) -> None:
        """Answer GET /v1/models/M."""
        self._model(name)
        exchange.finish_json(_describe_model(name))

    def embed(self, exchange: Exchange, body: Body, name: str) -> None:
        """Answer POST /v1/embeddings; raises RequestError, and then holds nothing."""
        ask = EmbeddingAsk(parse_json(body, JSON_DEPTH, self._limits.json_bytes))
        model = self._model(ask.model)
        index = output_of(model.spec)
        size = model.spec.outputs[index].shape[0]
        if ask.dimensions > size:
            raise BadRequest(f"this model's embeddings have {size} dimensions, not {ask.dimensions}")
        head = exchange.head
        tenant = head.tenant
        ticket = model.open(len(ask.texts), exchange.flow, 0, tenant)
        exchange.model, exchange.ticket = model, ticket
        try:
            model.write(ticket, 0, [pack_element(text.encode()) for text in ask.texts])
            timeout_ns, min_accuracy = 0, ask.min_accuracy
            if tenant is not None:
                ticket.client, timeout_ns = tenant.client, tenant.timeout_ns
                min_accuracy = min_accuracy or tenant.min_accuracy
            elif exchange.connection is not None:
                ticket.client = exchange.connection.client
            ticket.uncached = head.uncached
            model.submit(ticket, partial(_done, exchange, model, ask), timeout_ns, min_accuracy)
        except BaseException:
            exchange.withdraw()
            raise

    def _model(self, name: str) -> Model:
        model = self._models().get(name)
        if model is None or not embeds(model.spec):
            raise NotFound("no model of that name that embeds text is served; GET /v1/models lists them")
        return model


def embeds(spec: FamilySpec) -> bool:
    """Return whether a family answers /v1/embeddings."""
    return spec.openai is not None and spec.openai.embeddings


def output_of(spec: FamilySpec) -> int:
    """Return the index of the output that is the embedding."""
    name = spec.openai.output if spec.openai is not None else ""
    return [tensor.name for tensor in spec.outputs].index(name) if name else 0


def _describe_model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "clover"}


def _done(exchange: Exchange, model: Model, ask: EmbeddingAsk, ticket: Ticket) -> None:
    """Answer the request of a ticket that the data plane has finished; the callback of `Model.submit`."""
    if exchange.ticket is not ticket:
        return  # the client is gone, and its ticket was closed when it went
    exchange.ticket = None
    if exchange.connection is not None and exchange.connection.state.tracer is not None:
        exchange.traced = ticket
    try:
        if ticket.status == 200:
            _answer(exchange, model, ask, ticket)
        elif ticket.status == 500:
            exchange.fail(500, "the model failed on this request")
        else:
            exchange.fail(ticket.status, ticket.error, b"", ticket.retry_after_s)
    except RequestError as error:
        exchange.refuse(error)
    except Exception as error:
        exchange.fault(error)
        log.exception("embeddings could not be encoded", extra=trace_ids(exchange))
    finally:
        exchange.traced = None
        model.close(ticket)


def _answer(exchange: Exchange, model: Model, ask: EmbeddingAsk, ticket: Ticket) -> None:
    rows = shorten(np.asarray(model.read(ticket, output_of(model.spec)), np.float32), ask.dimensions)
    if not np.isfinite(rows).all():
        raise ModelFailed("the model gave an embedding that is not finite")
    words = sum(len(text.split()) for text in ask.texts)
    values: list[Any] = [_base64(row) for row in rows] if ask.as_base64 else list(np.ascontiguousarray(rows))
    document = {
        "object": "list",
        "data": [{"object": "embedding", "index": at, "embedding": value} for at, value in enumerate(values)],
        "model": ask.model,
        "usage": {"prompt_tokens": words, "total_tokens": words},
    }
    receipt = receipt_field(model.receipt(ticket), ask.wants_receipt)
    if by_agreement(model.spec):
        receipt = receipt[:-2] + PROXIED
    exchange.finish(200, [orjson.dumps(document, option=_NUMPY)], receipt)


def shorten(rows: NDArray[np.float32], dimensions: int) -> NDArray[np.float32]:
    """Return the first `dimensions` numbers of each vector (0: all as they are), scaled to length 1 again."""
    if not dimensions or dimensions == rows.shape[1]:
        return rows
    part = rows[:, :dimensions]
    lengths = np.linalg.norm(part, axis=1, keepdims=True)
    scaled: NDArray[np.float32] = part / np.maximum(lengths, np.finfo(np.float32).tiny)
    return scaled


def _base64(row: NDArray[np.float32]) -> str:
    return base64.b64encode(row.astype("<f4").tobytes()).decode()
