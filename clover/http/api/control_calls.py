"""Calls that change the server, each in a task of its own and recorded in the audit log; and reading that log."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Mapping
from typing import Any
from urllib.parse import parse_qs

from clover.errors import BadRequest, CloverError, NotFound, PlanError, PolicyFault, RequestError, shortage
from clover.http.access import Access
from clover.http.audit import AuditLog
from clover.http.exchange import Exchange
from clover.http.heads import Head
from clover.http.oip.request import parse_json
from clover.http.oip.signature import JSON_DEPTH
from clover.http.oip.tensors import Body
from clover.interfaces import ServerView
from clover.verbs import VERBS

log = logging.getLogger("clover.http")

DOCUMENT_BYTES = 1 << 16
"""Most bytes of a JSON body that is no inference, unpacked: parsing more would delay all answers."""
_LISTED = 100
_MOST_LISTED = 1000
_MOST_FIELDS = 16
_NAME_CHARACTERS = 128

COMMANDS = (*VERBS, "roll-out", "cluster")
"""What `POST /v2/clover/VERB` is taken for."""

ASKING = {"cluster": ("status", "profiles")}
"""Actions of commands that change nothing: a cluster's controller asks them every few seconds."""

Begin = Callable[[dict[str, Any], str], Coroutine[Any, Any, Any]]
"""Returns the change that is asked for, by whom; raises RequestError."""


class ControlCalls:
    """The handlers of these paths, for one socket."""

    def __init__(self, view: ServerView, loop: asyncio.AbstractEventLoop, access: Access, audit: AuditLog) -> None:
        self._view = view
        self._loop = loop
        self._access = access
        self._audit = audit
        self._tasks: set[asyncio.Task[None]] = set()

    def load(self, exchange: Exchange, body: Body, name: str) -> None:
        """Start the workers of a model."""
        self._change(exchange, body, lambda asked, _: self._loading(asked, name), "failed to load: ")

    def unload(self, exchange: Exchange, body: Body, name: str) -> None:
        """Stop the workers of a model."""
        self._change(exchange, body, lambda asked, _: self._unloading(asked, name), "failed to unload: ")

    def command(self, exchange: Exchange, body: Body, name: str) -> None:
        """Carry out the operator's command that is the last part of the path."""
        verb = exchange.head.path.rpartition("/")[2]
        self._change(exchange, body, lambda asked, who: self._view.control().command(verb, asked, who), "")

    def list_calls(self, exchange: Exchange, body: Body, name: str) -> None:
        """Answer with the newest calls, refused ones included."""
        exchange.finish_json(self._audit.newest(limit_of(exchange.head)))

    def record_refusal(self, head: Head) -> None:
        """Note a call that its head alone refused."""
        assert head.refusal is not None
        self._record(self._caller(head), head.path, status=head.refusal[0], error=head.refusal[1])

    async def cancel(self) -> None:
        """Cancel the changes that still run, and wait for their end."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # --- changes ------------------------------------------------------------------------------------------------------

    def _loading(self, asked: dict[str, Any], name: str) -> Coroutine[Any, Any, Any]:
        parameters = asked.get("parameters", {})
        if type(parameters) is not dict:
            raise BadRequest("failed to load: parameters is not an object")
        config = parameters.get("config", "")
        if type(config) is not str:
            raise BadRequest("failed to load: parameter config is not a string of JSON")
        if any(key.startswith("file:") for key in parameters):
            raise BadRequest("failed to load: files are not taken over the network")
        return self._view.load(name, config)

    def _unloading(self, asked: dict[str, Any], name: str) -> Coroutine[Any, Any, Any]:
        if type(asked.get("parameters", {})) is not dict:
            raise BadRequest("failed to unload: parameters is not an object")
        return self._view.unload(name)

    def _change(self, exchange: Exchange, body: Body, begin: Begin, failed: str) -> None:
        """Begin a change if its caller may make it.  It is noted in the audit log in any case."""
        head, who = exchange.head, ""
        asked: dict[str, Any] = {}
        try:
            who = self._access.check_change(exchange)
            asked = object_of(body)
            change = begin(asked, who)
        except RequestError as error:
            self._record(who or self._caller(head), head.path, asked, status=error.status, error=error.message)
            raise
        task = self._loop.create_task(self._finish(exchange, change, failed, who, asked))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _finish(
        self, exchange: Exchange, change: Coroutine[Any, Any, Any], failed: str, who: str, asked: dict[str, Any]
    ) -> None:
        path, status, text = exchange.head.path, 500, "it was cut off"
        try:
            status, text = await self._await(exchange, change, failed)
        finally:
            self._record(who, path, asked, status=status, error=text)

    async def _await(self, exchange: Exchange, change: Coroutine[Any, Any, Any], failed: str) -> tuple[int, str]:
        """Wait for a change and answer with its result; return status and error of the answer.  Texts of errors that
        are not for clients stay in the log."""
        retry_after_s = None
        try:
            result = await change
        except NotFound:
            status, text = 404, f"Request for unknown model: {failed}no model of that name is known"
        except RequestError as error:
            status, retry_after_s = error.status, error.retry_after_s
            text = failed + (error.message if status != 500 else "the server failed on this request")
        except PlanError as error:
            log.warning("a change was refused: %s", error)
            why = "`python -m clover ctl decisions` (GET /v2/clover/decisions) says why"
            status, text = 409, f"{failed}no plan satisfies this, or it was rolled back; {why}"
            if isinstance(error, PolicyFault):
                status, text = 500, f"{failed}the policy raised an exception; {why}"
        except CloverError as error:
            log.warning("a change failed: %s", error)
            status, text = 503, f"{failed}the workers could not be changed; see the log"
        except Exception as error:
            log.exception("a change failed")
            status, text = 500, f"{failed}the server failed on this request"
            if (short := shortage(error)) is not None:
                status, text, retry_after_s = short.status, failed + short.message, short.retry_after_s
        else:
            exchange.finish_json({} if result is None else result)
            return 200, ""
        exchange.fail(status, text, retry_after_s=retry_after_s)
        return status, text

    # --- the audit log ------------------------------------------------------------------------------------------------

    def _caller(self, head: Head) -> str:
        """Return who made a call that is refused; empty if nobody knows."""
        return head.tenant.client if head.tenant is not None else self._access.bearer(head.bearer)

    def _record(
        self, who: str, path: str, asked: Mapping[str, Any] | None = None, *, status: int, error: str = ""
    ) -> None:
        parts = path.split("/")
        call, model = "unknown", ""
        if len(parts) == 4 and parts[3] in COMMANDS:
            call, model = parts[3], str((asked or {}).get("model", ""))
        elif len(parts) == 6 and parts[5] in ("load", "unload"):
            call, model = parts[5], parts[4]
        if status == 200 and (asked or {}).get("action") in ASKING.get(call, ()):
            return
        self._audit.record(
            who,
            self._access.door,
            call,
            model=model[:_NAME_CHARACTERS],
            arguments=asked,
            status=status,
            error=error,
        )


def object_of(body: Body) -> dict[str, Any]:
    """Return the JSON object of a body, empty for an empty body; raises BadRequest for anything else."""
    if not len(body):
        return {}
    document = parse_json(body, JSON_DEPTH, DOCUMENT_BYTES)
    if type(document) is not dict:
        raise BadRequest("the body is not a JSON object")
    return document


def limit_of(head: Head) -> int:
    """Return how many records a query asks for (`limit`); raises BadRequest."""
    try:
        given = parse_qs(head.query, keep_blank_values=True, max_num_fields=_MOST_FIELDS).get("limit")
    except ValueError:
        raise BadRequest(f"the query has more than {_MOST_FIELDS} fields") from None
    if given is None:
        return _LISTED
    text = given[-1]
    if not (text.isascii() and text.isdigit()) or len(text) > 4 or not 1 <= int(text) <= _MOST_LISTED:
        raise BadRequest(f"limit is not a whole number from 1 to {_MOST_LISTED}")
    return int(text)
