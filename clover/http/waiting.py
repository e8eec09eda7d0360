"""The requests of waiting rows: read, submitted and answered by the code that does so for clients.

    requests = RowRequests(spare, limits, tenants)
    requests.start(job, row.body, done)     # done(status, body, receipt, version, again_s), later or at once

What differs is the `Model`: rows go to `clover.runtime.router.waiting.SpareTime`.  So a row of a batch job has the body
that a client's request would get, and errors in the same words.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from clover.config import LimitsConfig
from clover.errors import BadRequest, NotFound, RequestError
from clover.http.api.embeddings import PATH, EmbeddingRoutes
from clover.http.exchange import JSON, Exchange
from clover.http.heads import Head
from clover.http.inference import InferEndpoint
from clover.http.server_state import ConnectionBase
from clover.interfaces import Model, RowDone
from clover.runtime.router.waiting import SpareTime
from clover.tenants import Tenants
from clover.types import FamilySpec, JobView

log = logging.getLogger("clover.waiting")


class _NoConnection(ConnectionBase):
    """What a request without a connection begins with."""

    def __init__(self) -> None:
        self.number = 0


class RowRequest(Exchange):
    """The request of one row.  `done` gets its answer."""

    def __init__(self, head: Head, spare: SpareTime, done: RowDone) -> None:
        Exchange.__init__(self, _NoConnection(), head)
        self.connection = None
        self._spare = spare
        self._done = done
        self._ended = False

    def issue(self) -> bytes:
        """Return no id: no labels are taken for rows of batch jobs."""
        return b""

    def finish(self, status: int, parts: list[bytes], fields: bytes = b"", kind: bytes = JSON) -> None:
        """Hand the answer over."""
        if kind is not JSON:
            self.refuse(BadRequest("the answer of a row of a batch is JSON: ask for no binary output"))
            return
        self._end(status, b"".join(parts), None)

    def fail(self, status: int, text: str, fields: bytes = b"", retry_after_s: float | None = None) -> None:
        """Hand an error over, or that the row should come again."""
        if retry_after_s is None:
            Exchange.fail(self, status, text)
        else:
            self._end(status, b"", retry_after_s)

    def _end(self, status: int, body: bytes, again_s: float | None) -> None:
        if not self._ended:
            self._ended = True
            receipt = self._spare.latest if status == 200 else None
            self._done(status, body, receipt, self._spare.spec.version, again_s)


class RowRequests:
    """Starts the requests of rows.  `spare` returns what computes the waiting rows of the model that a name leads to;
    None if it leads to none that can."""

    def __init__(self, spare: Callable[[str], SpareTime | None], limits: LimitsConfig, tenants: Tenants) -> None:
        self._spare = spare
        self._limits = limits
        self._tenants = tenants
        self._endpoints: dict[str, tuple[FamilySpec, InferEndpoint]] = {}
        self._models: dict[str, Model] = {}
        self._embeddings = EmbeddingRoutes(lambda: self._models, limits)

    def start(self, job: JobView, body: bytes, done: RowDone) -> None:
        """Start the request of a row of `job`; never raises."""
        head = Head()
        head.method, head.path = "POST", job.endpoint
        head.tenant = next((tenant for tenant in self._tenants.all() if tenant.name == job.tenant), None)
        spare = self._spare(job.model)
        if spare is None:
            done(503, b"", None, "", 1.0)
            return
        request = RowRequest(head, spare, done)
        try:
            if job.endpoint == PATH:
                self._models = {job.model: spare}
                self._embeddings.embed(request, body, "")
            else:
                self._endpoint(job.model, spare).start(request, body)
        except NotFound as error:  # of a model that does not embed
            request.refuse(BadRequest(error.message))
        except RequestError as error:
            request.refuse(error)
        except Exception:
            log.exception("a row of %s could not be read", job.id)
            request.fail(500, "the server failed on this request")

    def _endpoint(self, name: str, spare: SpareTime) -> InferEndpoint:
        spec, endpoint = self._endpoints.get(name, (None, None))
        if endpoint is None or endpoint.model is not spare or spec is not spare.spec:
            endpoint = InferEndpoint(name, spare, self._limits)
            self._endpoints[name] = spare.spec, endpoint
        return endpoint
