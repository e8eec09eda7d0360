"""A request head, from its raw bytes to what the rest needs: a pure function.

llhttp parses the fields, but it does not protect: it takes a missing or repeated Host, HTTP/0.9 and 2.0, two spaces in
the request line, any transfer coding that ends in `chunked`, and heads without end.  So the head is cut out of the
stream first (it ends at CRLF CRLF and nowhere else), its size and line endings are checked as raw bytes, the request
line is parsed here, and only the fields go through llhttp.

A client on a kept-alive connection sends the same head again and again.  Because parsing is pure, `Heads` caches the
results for small heads by all their bytes.  Often a head differs only in the length of the body or of its JSON, in an
id, or in the trace context that a mesh adds.  So heads are cached by their bytes without these values too, and a head
that differs in nothing else is filled in from the one before.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any
from urllib.parse import unquote

import httptools

from clover._native.wire import varying
from clover.config import LimitsConfig
from clover.tenants import Tenant

TOKEN = b"!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
_VISIBLE = bytes(range(0x21, 0x7F))
_DIGITS = b"0123456789"
_AUTHORITY = re.compile(rb"(?:\[([0-9A-Fa-f:.]{2,45})\]|([A-Za-z0-9._-]{1,255}))(?::([0-9]{0,5}))?\Z")
_VERSION = re.compile(rb"HTTP/[0-9]\.[0-9]\Z")
_ANY_BODY = ("a request body", " (limits.body_bytes)")
MOST_LINE_BYTES = 16 << 10
"""The longest request line: twice what Apache takes by default."""
MOST_FIELDS = 100
"""The most header fields of a request, as Apache has it by default."""
_MEMO_HEADS = 1024
_MEMO_BYTES = 2048
NOBODY = b"\0"
"""A bearer token that no client can send, and nobody has."""
_MOST_DIGITS = 18
_MOST_ID = 128


class MalformedError(Exception):
    """The bytes are no acceptable request: the connection answers `status` with `text`, and closes."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status
        self.text = text


class Head:
    """One parsed head.

    `length` is the declared size of the body (0 without one, or if it is `chunked`).  `host` is the target's, from the
    request line if that is `absolute`, else from the Host field; empty in an HTTP/1.0 request without either.
    `authority` is the same with its port.  `json_length` is Inference-Header-Content-Length, -1 if absent.

    The body, also decoded, has at most `most_bytes`; `bound` is what that holds for, and how to be within it.

    `cross_site`: a browser says that a page of another site makes the request (Fetch Metadata, W3C).

    `uncached` is 1 if Cache-Control asks for a fresh answer (`no-cache`), 2 if that is not to be kept either
    (`no-store`).

    `traceparent` and `tracestate` are the fields of W3C Trace Context as they came, not checked yet.

    What the routes add: another `most_bytes` and its `bound`; `receive` makes what takes the body as it comes
    (`clover.http.chunks.Receiver`), None if the body is kept until it is whole; `refusal` is an answer that follows
    from the head alone (status, text, further header lines), `authorised` whether it carries the token, `tenant` whose
    token it carries instead, `route` the handler that was found for the path and the model it names, `endpoint` the
    `InferEndpoint` of a request that infers and whose body is not compressed.
    """

    def __init__(self) -> None:
        self.method = ""
        self.path = ""
        self.query = ""
        self.minor = 1
        self.host = ""
        self.authority = b""
        self.absolute = False
        self.length = 0
        self.most_bytes = 0
        self.bound = _ANY_BODY
        self.chunked = False
        self.keep_alive = False
        self.expect = False
        self.coding = ""
        self.accept = ""
        self.json_length = -1
        self.request_id = b""
        self.traceparent = b""
        self.tracestate = b""
        self.uncached = 0
        self.origin: bytes | None = None
        self.cross_site = False
        self.authorised = False
        self.tenant: Tenant | None = None
        self.bearer = b""
        self.receive: Any = None
        self.refusal: tuple[int, str, bytes] | None = None
        self.route: Any = None
        self.endpoint: Any = None

    def too_large(self) -> str:
        """Return the error of a body of more than `most_bytes`."""
        what, remedy = self.bound
        return f"{what} has at most {self.most_bytes} bytes{remedy}"


class _Fields:
    """Collects the fields llhttp finds."""

    __slots__ = ("pairs",)

    def __init__(self) -> None:
        self.pairs: list[tuple[bytes, bytes]] = []

    def on_header(self, name: bytes, value: bytes) -> None:
        self.pairs.append((name.lower(), value.strip(b" \t")))


def split_authority(authority: bytes, where: str = "Host field") -> str:
    """Return the host of `host[:port]` in lower case, IPv6 without brackets; raises MalformedError (400)."""
    match = _AUTHORITY.match(authority)
    if match is None or (match[3] and int(match[3]) > 65535):  # RFC 3986 3.2.3: a port may be empty
        raise MalformedError(400, f"the {where} is not valid")
    return (match[1] or match[2]).decode("ascii").lower()


def check_prefix(data: bytes, start: int, limits: LimitsConfig) -> None:
    """Refuse a head that has not ended yet, but cannot become acceptable; raises MalformedError."""
    size = len(data) - start
    if size > limits.head_bytes:
        raise MalformedError(431, "the request head is too large")
    newline = data.find(b"\n", start)
    if newline < 0:
        if size > MOST_LINE_BYTES:
            raise MalformedError(414, "the request line is too long")
        if b"\0" in data[start:]:
            raise MalformedError(400, "the request holds a NUL byte")
        return
    if data.count(b"\n", start) != data.count(b"\r\n", start):
        raise MalformedError(400, "the request head holds a bare line feed")


def parse_head(raw: bytes, limits: LimitsConfig) -> Head:
    """Parse one head, from the request line to the empty line, both included; raises MalformedError."""
    if len(raw) > limits.head_bytes:
        raise MalformedError(431, "the request head is too large")
    lines = raw.count(b"\r\n")
    if raw.count(b"\n") != lines or raw.count(b"\r") != lines:
        raise MalformedError(400, "the request head holds a bare carriage return or line feed")
    if b"\0" in raw:
        raise MalformedError(400, "the request head holds a NUL byte")
    if b"\n " in raw or b"\n\t" in raw:
        raise MalformedError(400, "folded header fields are not accepted")
    if lines - 2 > MOST_FIELDS:
        raise MalformedError(431, "the request has too many header fields")
    end = raw.index(b"\r\n")
    head = Head()
    authority = _request_line(head, raw[:end])
    fields = _Fields()
    parser = httptools.HttpRequestParser(fields)
    try:
        parser.feed_data(b"POST / HTTP/1.%d" % head.minor + raw[end:])
    except httptools.HttpParserUpgrade:
        pass  # an offered upgrade is declined by answering
    except httptools.HttpParserError:
        raise MalformedError(400, "the header fields are not valid HTTP") from None
    _interpret(head, fields.pairs, authority, limits)
    return head


def _request_line(head: Head, line: bytes) -> bytes | None:
    """Fill in method, target and version; return the authority of an absolute target."""
    if len(line) > MOST_LINE_BYTES:
        raise MalformedError(414, "the request line is too long")
    parts = line.split(b" ")
    if len(parts) != 3:
        raise MalformedError(400, "the request line is not valid HTTP/1.1")
    method, target, version = parts
    if version not in (b"HTTP/1.1", b"HTTP/1.0"):
        if _VERSION.match(version):
            raise MalformedError(505, "only HTTP/1.0 and HTTP/1.1 are spoken here")
        raise MalformedError(400, "the request line is not valid HTTP/1.1")
    if not method or len(method) > 32 or method.translate(None, TOKEN):
        raise MalformedError(400, "the request method is not a token")
    if not target or target.translate(None, _VISIBLE):
        raise MalformedError(400, "the request target is not valid")
    head.method = method.decode("ascii")
    head.minor = version[-1] - 48
    authority = None
    lower = target[:8].lower()
    if lower.startswith((b"http://", b"https://")):
        rest = target.split(b"://", 1)[1]
        cut = min((at for at in (rest.find(b"/"), rest.find(b"?")) if at >= 0), default=len(rest))
        authority, target = rest[:cut], rest[cut:]
        if not target.startswith(b"/"):
            target = b"/" + target
    elif not (target.startswith(b"/") or (method == b"OPTIONS" and target == b"*") or method == b"CONNECT"):
        raise MalformedError(400, "the request target is not valid")
    path, _, query = target.partition(b"?")
    head.query = query.decode("ascii")
    text = path.decode("ascii")
    if "%" in text:
        # Segment by segment, so that an encoded slash never makes a new segment.
        parts_of = [unquote(part, errors="replace") for part in text.split("/")]
        text = "/".join("%2F".join(part.split("/")) for part in parts_of)
    head.path = text
    return authority


def _interpret(head: Head, pairs: list[tuple[bytes, bytes]], authority: bytes | None, limits: LimitsConfig) -> None:
    seen: dict[bytes, bytes] = {}
    connection: list[bytes] = []
    for name, value in pairs:
        if name in seen:
            if name == b"host":
                raise MalformedError(400, "the Host field is repeated")
            if name in (b"content-length", b"transfer-encoding"):
                raise MalformedError(400, "the message length is given twice")
            if name in (b"inference-header-content-length", b"authorization", b"origin", b"expect"):
                raise MalformedError(400, "a header field that must be single is repeated")
            value = seen[name] + b", " + value
        seen[name] = value
    host = seen.get(b"host")
    if host is not None:
        head.host = split_authority(host)
        head.authority = host.lower()
    elif head.minor == 1:  # HTTP/1.0 had no such field yet
        raise MalformedError(400, "the Host field is missing")
    if authority is not None:  # RFC 9112 3.2.2: it counts instead of the Host field, which has to be valid all the same
        head.host = split_authority(authority, "request target")
        head.authority = authority.lower()
        head.absolute = True
    transfer, length = seen.get(b"transfer-encoding"), seen.get(b"content-length")
    head.most_bytes = limits.body_bytes
    if transfer is not None:
        if length is not None:
            raise MalformedError(400, "Transfer-Encoding and Content-Length exclude each other")
        if head.minor == 0:
            raise MalformedError(400, "HTTP/1.0 has no Transfer-Encoding")
        if transfer.lower() != b"chunked":
            raise MalformedError(400, "the only transfer coding accepted is chunked")
        head.chunked = True
    elif length is not None:
        if not length or length.translate(None, _DIGITS):
            raise MalformedError(400, "the Content-Length field is not valid")
        head.length = int(length) if len(length) <= _MOST_DIGITS else 1 << 62
        if head.length > limits.body_bytes:
            head.refusal = (413, head.too_large(), b"")
    if b"connection" in seen:
        connection = [part.strip().lower() for part in seen[b"connection"].split(b",")]
    head.keep_alive = b"close" not in connection and (head.minor == 1 or b"keep-alive" in connection)
    if head.minor == 1 and b"expect" in seen:
        if seen[b"expect"].lower() != b"100-continue":
            head.refusal = head.refusal or (417, "the only expectation met is 100-continue", b"")
        head.expect = head.chunked or head.length > 0
    _interpret_inference(head, seen)


def _interpret_inference(head: Head, seen: dict[bytes, bytes]) -> None:
    coding = seen.get(b"content-encoding", b"").lower()
    if coding in (b"gzip", b"x-gzip"):
        head.coding = "gzip"
    elif coding == b"deflate":
        head.coding = "deflate"
    elif coding not in (b"", b"identity"):
        text = "the content codings accepted are gzip and deflate"
        head.refusal = head.refusal or (415, text, b"Accept-Encoding: gzip, deflate\r\n")
    if b"accept-encoding" in seen:
        head.accept = _choose_coding(seen[b"accept-encoding"])
    size = seen.get(b"inference-header-content-length")
    if size is not None:
        if not size or len(size) > _MOST_DIGITS or size.translate(None, _DIGITS):
            head.refusal = head.refusal or (400, "Inference-Header-Content-Length is not a number", b"")
        else:
            head.json_length = int(size)
    request_id = seen.get(b"x-request-id", b"")
    if 0 < len(request_id) <= _MOST_ID and not request_id.translate(None, _VISIBLE):
        head.request_id = request_id
    head.traceparent = seen.get(b"traceparent", b"")
    head.tracestate = seen.get(b"tracestate", b"")
    if b"cache-control" in seen:
        head.uncached = freshness(seen[b"cache-control"])
    head.origin = seen.get(b"origin")
    head.cross_site = seen.get(b"sec-fetch-site") == b"cross-site"
    if b"authorization" in seen:
        head.bearer = bearer_of(seen[b"authorization"])


def _choose_coding(field: bytes) -> str:
    """Return "gzip" or "deflate" if Accept-Encoding names it with a weight above zero, gzip first; else ""."""
    wanted = set()
    for part in field.lower().split(b","):
        name, *parameters = (item.strip() for item in part.split(b";"))
        weight = next((item[2:].strip() for item in parameters if item.startswith(b"q=")), b"1")
        if weight.strip(b"0.") and not weight.translate(None, b"0123456789."):
            wanted.add(name)
    if b"gzip" in wanted or b"x-gzip" in wanted:
        return "gzip"
    return "deflate" if b"deflate" in wanted else ""


def bearer_of(authorization: bytes) -> bytes:
    """Return the token of an Authorization field; `NOBODY` if it holds no bearer token."""
    scheme, _, token = authorization.partition(b" ")
    return (token.strip() if scheme.lower() == b"bearer" else b"") or NOBODY


def freshness(cache_control: bytes) -> int:
    """Return what a Cache-Control field of a request forbids: see `Head.uncached`."""
    wishes = {part.strip() for part in cache_control.lower().split(b",")}
    return 2 if b"no-store" in wishes else 1 if wishes & {b"no-cache", b"max-age=0"} else 0


Values = tuple[bytes, int, int, bytes, bytes, bytes, bytes]
"""What `varying` returns of a head."""
_NO_VALUES: Values = b"", 0, -1, b"", b"", b"", b""


def fill_head(known: Head, values: Values) -> Head:
    """Return a head that differs from `known` in these values alone."""
    head = Head.__new__(Head)  # every attribute is set below
    head.method = known.method
    head.path = known.path
    head.query = known.query
    head.minor = known.minor
    head.host = known.host
    head.authority = known.authority
    head.absolute = known.absolute
    head.most_bytes = known.most_bytes
    head.bound = known.bound
    head.chunked = known.chunked
    head.keep_alive = known.keep_alive
    head.expect = known.expect
    head.coding = known.coding
    head.accept = known.accept
    head.uncached = known.uncached
    head.origin = known.origin
    head.cross_site = known.cross_site
    head.authorised = known.authorised
    head.tenant = known.tenant
    head.bearer = known.bearer
    head.receive = known.receive
    head.refusal = known.refusal
    head.route = known.route
    head.endpoint = known.endpoint
    _, head.length, head.json_length, head.request_id, head.traceparent, head.tracestate, _ = values
    return head


def _has_no_other(head: Head, values: Values) -> bool:
    """Return whether `head`, parsed of the same bytes, has these values, and so none in a field that was left."""
    _, length, json_length, request_id, traceparent, tracestate, _ = values
    return (
        (head.length, head.json_length) == (length, json_length)
        and head.request_id == request_id
        and (head.traceparent, head.tracestate) == (traceparent, tracestate)
    )


class Heads:
    """Parses heads and caches the small ones in `memo`: by their bytes, and by those without the values that vary, in a
    tuple of one, which no bytes of a client are equal to.  `judge(head)` adds what depends on the socket."""

    __slots__ = ("_judge", "_limits", "memo")

    def __init__(self, limits: LimitsConfig, judge: Callable[[Head], None]) -> None:
        self._limits = limits
        self._judge = judge
        self.memo: dict[object, Head] = {}

    def parse(self, raw: bytes) -> Head:
        """Return the head of `raw`, parsed and judged; raises MalformedError."""
        if len(raw) > _MEMO_BYTES:
            return self._lookup(raw)
        values = varying(raw) or _NO_VALUES
        known: Head | None = self.memo.get((values[0],))
        if known is not None and values[1] <= known.most_bytes and len(raw) <= self._limits.head_bytes:
            head = fill_head(known, values)
        else:
            head = self._lookup(raw)
            if head.refusal is not None:
                return head
            # What a head expects depends on whether there is a body.
            if values is not _NO_VALUES and values[0] != raw and not head.expect and _has_no_other(head, values):
                self._keep((values[0],), head)
        # With these another head comes with each request: this one will not come again.
        if not (head.request_id or head.traceparent or head.tracestate or values[6]):
            self._keep(raw, head)
        return head

    def _keep(self, key: object, head: Head) -> None:
        if len(self.memo) >= _MEMO_HEADS:
            self.memo.clear()
        self.memo[key] = head

    def _lookup(self, raw: bytes) -> Head:
        head = parse_head(raw, self._limits)
        self._judge(head)
        return head
