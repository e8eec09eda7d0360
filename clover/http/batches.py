"""`/v1/files` and `/v1/batches` as OpenAI's clients speak them: work that can wait.

A batch job is answered later, by `clover.waiting`.  Here its files come and go, and it is begun, shown and cancelled.
An upload goes to the disk as it comes, and a download leaves in pieces.  A tenant sees its own files and jobs; who
bears an operator's token sees all.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any
from urllib.parse import parse_qs

import msgspec

from clover.config import LimitsConfig
from clover.errors import BadRequest, NotFound, NotImplementedHere, RequestError
from clover.http.access import Access
from clover.http.api.embeddings import PATH as EMBEDDINGS
from clover.http.api.embeddings import embeds
from clover.http.exchange import Exchange
from clover.http.heads import Head, MalformedError
from clover.http.multipart import FormReader
from clover.http.oip.tensors import Body
from clover.http.outgoing import Outgoing
from clover.http.streams import send_pieces
from clover.interfaces import Model
from clover.types import BatchFile, BatchJob
from clover.waiting.store import DAY_S, BatchStore, Upload

log = logging.getLogger("clover.http")

FILES = "/v1/files"
BATCHES = "/v1/batches"
_FORM_BYTES = 1 << 16
"""What an upload has beside its file, at most."""
_WINDOW = re.compile(r"([1-9][0-9]{0,4})(m|h|d)")
_UNITS_S = {"m": 60.0, "h": 3600.0, "d": DAY_S}
_SHORTEST_S = 900.0
_LONGEST_S = 7 * DAY_S
_MOST_LISTED = 100
_LISTED = 20
_MOST_FILES_LISTED = 10_000
_MOST_FIELDS = 16
_NAME_CHARACTERS = 255
_SHORTEST_KEPT_S = 3600
_EARLY_BYTES = 1 << 20
_ENDED = {
    "failed": "failed_at",
    "completed": "completed_at",
    "expired": "expired_at",
    "cancelled": "cancelled_at",
}

Handler = Callable[[Exchange, Body, str], None]


class _CreateFields(msgspec.Struct):
    """The body of a new batch."""

    input_file_id: str
    endpoint: str
    completion_window: str = "24h"
    metadata: dict[str, str] | None = None
    output_expires_after: dict[str, Any] | None = None


_CREATE = msgspec.json.Decoder(_CreateFields)


class BatchRoutes:
    """The handlers of one socket; `store` is None where no batches are taken."""

    def __init__(
        self, store: BatchStore | None, limits: LimitsConfig, loop: asyncio.AbstractEventLoop, access: Access
    ) -> None:
        self._store = store
        self._limits = limits
        self._loop = loop
        self._access = access
        self._tasks: set[asyncio.Task[None]] = set()
        self._paths: dict[tuple[str, ...], dict[str, Handler]] = {
            ("files",): {"GET": self._list_files, "POST": self._keep_file},
            ("files", "ID"): {"GET": self._show_file, "DELETE": self._delete_file},
            ("files", "ID", "content"): {"GET": self._send_file},
            ("batches",): {"GET": self._list_batches, "POST": self._create},
            ("batches", "ID"): {"GET": self._show_batch},
            ("batches", "ID", "cancel"): {"POST": self._cancel},
        }

    def find(self, path: str) -> tuple[dict[str, Handler], str] | None:
        """Return the methods of a path and the id in it; None if it is none of these."""
        parts = path.split("/")
        if parts[:2] != ["", "v1"] or len(parts) < 3 or parts[3:4] == [""]:
            return None
        methods = self._paths.get((parts[2], *("ID" for _ in parts[3:4]), *parts[4:]))
        if methods is None:
            return None
        if self._store is None:
            methods = dict.fromkeys(methods, _refuse)
        return methods, "".join(parts[3:4])

    def judge(self, head: Head) -> None:
        """Have the body of an upload received as it comes, and let it be as large as a tenant's files may be."""
        if self._store is None or head.path != FILES or head.method != "POST":
            return
        mounted = self._access.door == "application"  # where bodies are kept until they are whole
        if head.refusal is not None and head.refusal[0] == 413:
            head.refusal = None  # it was judged as another body
        head.most_bytes = self._limits.body_bytes if mounted else self._store.config.bytes + _FORM_BYTES
        head.bound = ("an upload", f" ({'limits.body_bytes' if mounted else 'batch_jobs.bytes'})")
        if head.refusal is not None:
            return
        if head.coding:
            head.refusal = (415, "an upload is not compressed", b"")
        elif head.length > head.most_bytes:
            head.refusal = (413, head.too_large(), b"")
        elif not mounted:
            head.receive = self._receive

    async def cancel(self) -> None:
        """Cancel the answers that are still made."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # --- what all of them do ------------------------------------------------------------------------------------------

    def _answer(self, exchange: Exchange, work: Callable[[BatchStore], Coroutine[Any, Any, Any]]) -> None:
        """Answer with the JSON that `work` returns, or the error that it raises."""
        assert self._store is not None
        task = self._loop.create_task(_reply(exchange, work(self._store)))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    @staticmethod
    def _owner(exchange: Exchange) -> str:
        tenant = exchange.head.tenant
        return tenant.name if tenant is not None else ""

    def _sees(self, exchange: Exchange) -> str | None:
        """Return whose files and jobs the caller sees; None for all."""
        connection = exchange.connection
        if exchange.head.authorised or (connection is not None and connection.control):
            return None
        return self._owner(exchange)

    # --- files --------------------------------------------------------------------------------------------------------

    def _receive(self, exchange: Exchange) -> UploadBody:
        assert self._store is not None
        return UploadBody(exchange, self._store, self._owner(exchange))

    def _keep_file(self, exchange: Exchange, body: Body, name: str) -> None:
        upload: Any = body
        if not isinstance(upload, UploadBody):  # it came through another program's server
            upload = self._receive(exchange)
            upload.feed(bytes(body))
        try:
            self._access.check_origin(exchange)
        except RequestError:
            upload.abort()
            raise
        self._answer(exchange, lambda store: upload.finish())

    def _list_files(self, exchange: Exchange, body: Body, name: str) -> None:
        sees, query = self._sees(exchange), _query(exchange.head)

        async def answer(store: BatchStore) -> dict[str, Any]:
            files = await store.files(sees)
            if "purpose" in query:
                files = [file for file in files if file.purpose == query["purpose"]]
            if query.get("order") == "asc":
                files.reverse()
            return _page([file_json(file) for file in files], query, _MOST_FILES_LISTED, _MOST_FILES_LISTED)

        self._answer(exchange, answer)

    def _show_file(self, exchange: Exchange, body: Body, name: str) -> None:
        sees = self._sees(exchange)

        async def answer(store: BatchStore) -> dict[str, Any]:
            return file_json(await store.file(sees, name))

        self._answer(exchange, answer)

    def _delete_file(self, exchange: Exchange, body: Body, name: str) -> None:
        self._access.check_origin(exchange)
        sees = self._sees(exchange)

        async def answer(store: BatchStore) -> dict[str, Any]:
            await store.delete(sees, name)
            return {"id": name, "object": "file", "deleted": True}

        self._answer(exchange, answer)

    def _send_file(self, exchange: Exchange, body: Body, name: str) -> None:
        sees = self._sees(exchange)

        async def answer(store: BatchStore) -> None:
            file = await store.file(sees, name)
            if isinstance(exchange.connection, Outgoing):
                await send_pieces(exchange, file.size_bytes, lambda start, size: store.read(file, start, size))
            elif file.size_bytes > self._limits.body_bytes:
                raise NotImplementedHere("a file of this size is read from the server's own port")
            else:
                exchange.finish(200, [await store.read(file, 0, file.size_bytes)], kind=b"application/octet-stream")

        self._answer(exchange, answer)

    # --- batches ------------------------------------------------------------------------------------------------------

    def _create(self, exchange: Exchange, body: Body, name: str) -> None:
        self._access.check_origin(exchange)
        try:
            fields = _CREATE.decode(bytes(body))
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise BadRequest(f"the body is no new batch: {str(error)[:200]}") from None
        window_s = parse_window(fields.completion_window)
        metadata = fields.metadata or {}
        if len(metadata) > 16 or any(len(key) > 64 or len(value) > 512 for key, value in metadata.items()):
            raise BadRequest("metadata has at most 16 texts, names of 64 and texts of 512 characters")
        carbon = metadata.get("carbon", "wait")
        if carbon not in ("wait", "now"):
            raise BadRequest("metadata.carbon is wait or now")
        if fields.endpoint != EMBEDDINGS and not re.fullmatch(
            r"/v2/models/[A-Za-z0-9._-]{1,128}/infer", fields.endpoint
        ):
            raise BadRequest(f"endpoint is {EMBEDDINGS} or /v2/models/NAME/infer")
        after = fields.output_expires_after
        output_s = _kept_s(after.get("anchor"), after.get("seconds")) if after else None
        owner, sees = self._owner(exchange), self._sees(exchange)

        async def answer(store: BatchStore) -> dict[str, Any]:
            await store.file(sees, fields.input_file_id)
            job = await store.create(
                owner,
                fields.input_file_id,
                fields.endpoint,
                window=fields.completion_window,
                window_s=window_s,
                carbon=carbon,
                metadata=metadata,
                output_s=output_s,
            )
            return batch_json(job, store)

        self._answer(exchange, answer)

    def _list_batches(self, exchange: Exchange, body: Body, name: str) -> None:
        sees, query = self._sees(exchange), _query(exchange.head)

        async def answer(store: BatchStore) -> dict[str, Any]:
            jobs = [batch_json(job, store) for job in await store.jobs(sees)]
            return _page(jobs, query, _LISTED, _MOST_LISTED)

        self._answer(exchange, answer)

    def _show_batch(self, exchange: Exchange, body: Body, name: str) -> None:
        sees = self._sees(exchange)

        async def answer(store: BatchStore) -> dict[str, Any]:
            return batch_json(await store.job(sees, name), store)

        self._answer(exchange, answer)

    def _cancel(self, exchange: Exchange, body: Body, name: str) -> None:
        self._access.check_origin(exchange)
        sees = self._sees(exchange)

        async def answer(store: BatchStore) -> dict[str, Any]:
            return batch_json(await store.cancel(sees, name), store)

        self._answer(exchange, answer)


class UploadBody:
    """The body of an upload, which goes to the disk as it comes (`clover.http.chunks.Receiver`)."""

    def __init__(self, exchange: Exchange, store: BatchStore, owner: str) -> None:
        self._exchange = exchange
        self._connection: Any = exchange.connection
        self._form = FormReader(self._take)
        self._upload: Upload | None = None
        self._early: list[bytes] = []
        self._early_bytes = 0
        self._error: RequestError | None = None
        self._aborted = False
        head = exchange.head
        self._beginning = asyncio.get_running_loop().create_task(
            self._begin(store, owner, 0 if head.chunked else max(0, head.length - _FORM_BYTES))
        )

    async def _begin(self, store: BatchStore, owner: str, declared: int) -> None:
        try:
            upload = await store.upload(owner, declared)
        except Exception as error:
            if not isinstance(error, RequestError):
                log.exception("an upload could not be begun")
                error = RequestError("the server failed on this request")
            self._error = error
            self._early.clear()
            if isinstance(self._connection, Outgoing):
                self._connection.refuse_body(self._exchange, error.status, error.message)  # type: ignore[attr-defined]
            return
        if self._aborted:
            upload.abort()
            return
        self._upload = upload
        if isinstance(self._connection, Outgoing):
            upload.drained = self._connection.drained  # type: ignore[attr-defined]
        for data in self._early:
            upload.write(data)
        self._early.clear()
        self._early_bytes = 0
        if not upload.full:
            upload.drained()

    @property
    def full(self) -> bool:
        """Whether no more should be read before some is on the disk."""
        return self._upload.full if self._upload is not None else self._early_bytes > _EARLY_BYTES

    def __len__(self) -> int:
        return self._upload.waiting_bytes if self._upload is not None else self._early_bytes

    def __iadd__(self, data: memoryview) -> UploadBody:
        try:
            self.feed(bytes(data))
        except RequestError as error:
            raise MalformedError(error.status, error.message) from None
        return self

    def feed(self, data: bytes) -> None:
        """Take the next bytes; raises RequestError."""
        self._form.feed(data)
        if self._upload is not None and self._upload.error is not None:
            raise self._upload.error

    def _take(self, data: bytes) -> None:
        if self._upload is not None:
            self._upload.write(data)
        elif self._error is None:
            self._early.append(data)
            self._early_bytes += len(data)

    async def finish(self) -> dict[str, Any]:
        """Keep the file and return what OpenAI's API says of it; raises RequestError, and keeps nothing then."""
        await self._beginning
        if self._error is not None:
            raise self._error
        upload = self._upload
        assert upload is not None
        try:
            fields = self._form.fields
            if not self._form.complete or self._form.filename is None:
                raise BadRequest("the form ends before its file does")
            if fields.get("purpose") != "batch":
                raise BadRequest("purpose is batch: files are the inputs of batches here")
            seconds = fields.get("expires_after[seconds]")
            expires_s = _kept_s(fields.get("expires_after[anchor]"), seconds) if seconds is not None else None
            return file_json(await upload.finish(_shown_name(self._form.filename), "batch", expires_s))
        finally:
            upload.abort()

    def abort(self) -> None:
        """Forget the body."""
        self._aborted = True
        self._early.clear()
        if self._upload is not None:
            self._upload.abort()


def _refuse(exchange: Exchange, body: Body, name: str) -> None:
    raise NotImplementedHere("this server does not take batches")


async def _reply(exchange: Exchange, work: Coroutine[Any, Any, Any]) -> None:
    """Answer with what `work` returns, unless that is None: then it has answered."""
    try:
        document = await work
    except RequestError as error:
        exchange.refuse(error)
    except Exception as error:
        log.exception("a request about batches failed")
        exchange.fault(error)
    else:
        if document is not None:
            exchange.finish_json(document)


def why_not(models: Mapping[str, Model], endpoint: str, model: str) -> str:
    """Return why a model cannot be asked at an endpoint; empty if it can."""
    found = models.get(model)
    if found is None:
        return "no model of that name is served"
    if endpoint == EMBEDDINGS and not embeds(found.spec):
        return f"{model} embeds no texts: GET /v1/models lists the models that do"
    return ""


def parse_window(text: str) -> float:
    """Return the seconds of a completion window; raises BadRequest."""
    match = _WINDOW.fullmatch(text)
    seconds = int(match[1]) * _UNITS_S[match[2]] if match is not None else 0.0
    if not _SHORTEST_S <= seconds <= _LONGEST_S:
        raise BadRequest('completion_window is a time from "15m" to "7d", as "24h"')
    return seconds


def _kept_s(anchor: object, seconds: object) -> float:
    """Return how long a file is to be kept; raises BadRequest."""
    text = str(seconds)
    if anchor != "created_at" or not (text.isascii() and text.isdigit()) or int(text[:9]) < _SHORTEST_KEPT_S:
        raise BadRequest(f"a file expires {_SHORTEST_KEPT_S} seconds or more after created_at")
    return float(int(text[:9]))


def _shown_name(name: str) -> str:
    """Return a client's name of a file as it is shown again; it is never a path."""
    return "".join(character if character.isprintable() else "?" for character in name)[:_NAME_CHARACTERS]


def _query(head: Head) -> dict[str, str]:
    """Return the fields of a query; raises BadRequest."""
    try:
        found = parse_qs(head.query, keep_blank_values=True, max_num_fields=_MOST_FIELDS)
    except ValueError:
        raise BadRequest(f"the query has more than {_MOST_FIELDS} fields") from None
    return {name: values[-1] for name, values in found.items()}


def _page(items: Sequence[dict[str, Any]], query: Mapping[str, str], usual: int, most: int) -> dict[str, Any]:
    """Return one page of a list, after the item that the query names; raises BadRequest."""
    text = query.get("limit", str(usual))
    if not (text.isascii() and text.isdigit()) or len(text) > 5 or not 1 <= int(text) <= most:
        raise BadRequest(f"limit is a whole number from 1 to {most}")
    if after := query.get("after"):
        at = next((at for at, item in enumerate(items) if item["id"] == after), None)
        if at is None:
            raise NotFound("after names nothing that is listed")
        items = items[at + 1 :]
    shown = list(items[: int(text)])
    return {
        "object": "list",
        "data": shown,
        "first_id": shown[0]["id"] if shown else None,
        "last_id": shown[-1]["id"] if shown else None,
        "has_more": len(items) > len(shown),
    }


def file_json(file: BatchFile) -> dict[str, Any]:
    """Return a file as OpenAI's API shows it."""
    return {
        "id": file.id,
        "object": "file",
        "bytes": file.size_bytes,
        "created_at": int(file.created_s),
        "expires_at": int(file.expires_s) if file.expires_s is not None else None,
        "filename": file.name,
        "purpose": file.purpose,
        "status": "processed",
    }


def batch_json(job: BatchJob, store: BatchStore) -> dict[str, Any]:
    """Return a job as OpenAI's API shows it, and beside it `clover`: what it cost so far, and when the rest runs."""
    ended = job.ended_s is not None and job.status != "failed"
    stamps = dict.fromkeys(_ENDED.values()) | {_ENDED.get(job.status, "completed_at"): _seconds(job.ended_s)}
    errors = {"object": "list", "data": list(job.errors)} if job.errors else None
    return {
        "id": job.id,
        "object": "batch",
        "endpoint": job.endpoint,
        "model": job.model or None,
        "errors": errors if job.status == "failed" else None,
        "input_file_id": job.input_file,
        "completion_window": job.window,
        "status": job.status,
        "output_file_id": job.output_file if ended and job.output_bytes else None,
        "error_file_id": job.error_file if ended and job.error_bytes else None,
        "created_at": int(job.created_s),
        "in_progress_at": _seconds(job.in_progress_s),
        "expires_at": int(job.deadline_s),
        "finalizing_at": _seconds(job.finalizing_s),
        "cancelling_at": _seconds(job.cancelling_s),
        **stamps,
        "request_counts": {"total": job.total, "completed": job.completed, "failed": job.failed},
        "metadata": job.metadata or None,
        "clover": {
            "carbon": job.carbon,
            "plan": store.reason(job.id) if job.status == "in_progress" else "",
            "energy_j": job.energy_j,
            "carbon_g": job.carbon_mg / 1e3,
            "repeated_rows": job.repeated,
        },
    }


def _seconds(at_s: float | None) -> int | None:
    return int(at_s) if at_s is not None else None
