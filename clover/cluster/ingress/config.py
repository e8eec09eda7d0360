"""HAProxy's configuration for a cluster: written once; nodes, weights and drains come later, over its runtime API.

Each region of clients (an *origin*) has a frontend, and a backend of its own with every node in it, so that the rows of
each origin are shared in their own way.  gRPC has another pair.  Words are those of HAProxy's configuration manual
(versions 2.8 and 3.0).

Four things decide how it is written:

- HAProxy sends a request again only as long as it has all of it, which is if head and body fit into its buffer.
  `tune.bufsize` is `body_bytes` and room for a head; a longer body is passed on as it comes, and is sent again only if
  the connection to a node could not be made.  HAProxy copies the whole buffer of each request to keep it, however
  little is in it, so a large one costs every request (`bench.cluster_ingress`).
- Servers that are added at run time cannot follow the health checks of other ones (`track`), so each server of each
  backend is checked by itself, the more rarely the more nodes there are.
- The family of a request stands in its path, over gRPC in its message and of embeddings in its JSON, which HAProxy can
  read: each family of an origin may have a backend of its own, beside the origin's for everything else.
- A proxy on a node's machine is a loopback peer, who may change a server that has no token.  So only paths of inference
  pass.
"""

from __future__ import annotations

import hashlib
import ipaddress
import re
from collections.abc import Iterable, Mapping
from urllib.parse import urlsplit

from clover.config_section import Section
from clover.errors import ClusterError
from clover.types import Record

ORIGIN_HEADER = "x-clover-origin"
"""Request header by which a node learns the region of the client; what clients send under that name is dropped."""

_HEAD_BYTES = 32 << 10
"""Room for a request's head in the buffer: the server's own limit (`limits.head_bytes`)."""
_REWRITE_BYTES = 1024
"""What HAProxy keeps of the buffer for headers that it adds (`tune.maxrewrite`)."""
_CHECKS_PER_S = 2000
# Labels must reach the server that gave the answer.  The ids that servers make begin with a random word of the process
# (`RequestIds`): it is learned from answers, and only where it is the server's, not the client's.
_LABELED_ANSWER = r"""  stick store-response "res.fhdr(clover-receipt),field(-2,'\"'),field(1,-)" table answered_by"""
_LABELS = (
    "  stick store-response res.hdr(x-request-id),field(1,-) table answered_by if !{ var(txn.named) -m found }",
    f"{_LABELED_ANSWER} if {{ res.fhdr(clover-receipt) -m sub feedback= }}",
    "  stick match req.body,json_query('$.id'),field(1,-) table answered_by if METH_POST { path_end /feedback }",
)
_LABEL_TABLE = ("backend answered_by", "  stick-table type string len 12 size 4k expire 1d")
_NAME = re.compile(r"[A-Za-z0-9._-]{1,128}")
_LISTEN = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._*-]+):([0-9]{1,5})")
_HOST = re.compile(r"[A-Za-z0-9.-]{1,253}|\[?[0-9A-Fa-f:.]{2,45}\]?")
_UNPRINTABLE = re.compile(r"[\x00-\x20\x7f\"'\\#$]")
_REFUSED = "operators call a server directly, not through the ingress"
_ERRORS = {
    400: ("the request is malformed", 3),
    408: ("the request was too slow", 4),
    413: ("the body is too large", 8),
    500: ("the ingress failed", 13),
    502: ("the answer of the node is malformed, or was cut off", 14),
    503: ("no node is ready", 14),
    504: ("no answer came in time", 14),
}
"""What the ingress itself answers by its HTTP statuses, with gRPC's status codes (grpc.io, "Status codes")."""
_GRPC = "/inference.GRPCInferenceService"
TOKEN_VARIABLE = "CLOVER_INGRESS_TOKEN"

INFERENCE_PATHS = "path /v2 /v2/models /v2/models/stats /v2/repository/index /openapi.json"
INFERENCE_FOLDERS = "path_beg /v2/models/ /v2/health/ /v1/"
_BATCHES = "{ path_beg /v1/files /v1/batches }"
_NO_BATCHES = (
    "content-type application/json string "
    """'{"error": {"message": "a cluster takes no batches yet: ask one of its nodes", "type": "server_error", """
    """"param": null, "code": "501"}}'"""
)


class IngressOrigin(Record, frozen=True, kw_only=True):
    """A region of clients: HOST:PORT at which the ingress takes its HTTP and its gRPC; empty for neither."""

    name: str
    listen: str = ""
    listen_grpc: str = ""


class IngressSettings(Section, frozen=True, kw_only=True):
    """How the ingress is set up.

    `folder`: of its configuration, socket and log, made with mode 0700.  `haproxy`: the program; found if it is empty.
    `body_bytes`: the longest body that is sent again if a node fails.  `retries`: further attempts at a request.
    `tls_cert`: PEM file with certificate chain and key for clients.  `ca_file`: of nodes that are reached by https.
    `token`: for health checks, which nodes on addresses other than loopback want; `file:PATH` is read at each start.
    `allowed_hosts`: names by which clients may call (all if there are none, unless it listens on loopback alone).
    `listen_metrics`: HOST:PORT of HAProxy's own metrics for Prometheus; empty for none.
    `families`: those whose rows are to be shared by themselves; others go by the weights of their origin.
    `nodes`: about how many there will be.  `threads`: 0 for as many as HAProxy chooses.  `check_s`:
    seconds between two checks of a node.  `connect_s`, `answer_s`: to connect to a node, and to its answer, then 504.
    `head_s`, `body_s`, `idle_s`: as the server's `limits.*`.
    """

    folder: str
    origins: tuple[IngressOrigin, ...]
    families: tuple[str, ...] = ()
    haproxy: str = ""
    body_bytes: int = 64 << 10
    retries: int = 3
    tls_cert: str = ""
    ca_file: str = ""
    token: str = ""
    allowed_hosts: tuple[str, ...] = ()
    listen_metrics: str = ""
    connections: int = 8192
    nodes: int = 64
    threads: int = 0
    check_s: float = 1.0
    connect_s: float = 0.5
    answer_s: float = 60.0
    head_s: float = 10.0
    body_s: float = 30.0
    idle_s: float = 60.0


class Upstream(Record, frozen=True, kw_only=True):
    """A node's addresses as HAProxy has them: IP addresses, and no gRPC if `grpc_port` is 0."""

    name: str
    host: str
    port: int
    secure: bool = False
    grpc_host: str = ""
    grpc_port: int = 0


class IngressBackend(Record, frozen=True, kw_only=True):
    """A backend: for the rows of an origin, over HTTP or gRPC, of one family or (if it is empty) of all others."""

    origin: str
    grpc: bool
    family: str = ""

    @property
    def name(self) -> str:
        """The name that HAProxy knows it by; names of origins and families have no colon."""
        return ":".join(["grpc" if self.grpc else "http", self.origin, *filter(None, [self.family])])


def backends(settings: IngressSettings) -> list[IngressBackend]:
    """Return all backends, in the order of origins."""
    return [
        IngressBackend(origin=origin.name, grpc=grpc, family=family)
        for origin in settings.origins
        for grpc, listen in ((False, origin.listen), (True, origin.listen_grpc))
        if listen
        for family in ("", *settings.families)
    ]


def check_name(name: str, what: str) -> str:
    """Return `name` if HAProxy takes it as one word; ClusterError otherwise."""
    if not _NAME.fullmatch(name):
        raise ClusterError(f"{what} {name!r}: use 1 to 128 letters, digits, dots, dashes and underscores")
    return name


def split_url(url: str) -> tuple[str, int, bool]:
    """Return host, port and whether it is TLS, of `http://HOST:PORT`, `https://...`, or HOST:PORT (as of gRPC);
    ClusterError otherwise."""
    try:
        parts = urlsplit(url if "://" in url else f"grpc://{url}")
        host, port = parts.hostname or "", parts.port
    except ValueError:
        host, port, parts = "", None, None
    if parts is None or not _HOST.fullmatch(host) or parts.path not in ("", "/") or parts.username is not None:
        raise ClusterError(f"{url!r} is no address of a node: use http://HOST:PORT")
    if parts.scheme not in ("http", "https", "grpc", "grpcs") or parts.query or parts.fragment:
        raise ClusterError(f"{url!r} is no address of a node: use http://HOST:PORT or https://HOST:PORT")
    secure = parts.scheme in ("https", "grpcs")
    port = port if port is not None else {"http": 80, "https": 443}.get(parts.scheme, 0)
    if not 0 < port <= 65535:
        raise ClusterError(f"{url!r} has no port")
    return host, port, secure


def check_settings(settings: IngressSettings) -> None:
    """Raise ClusterError if HAProxy could not be configured by these settings, or not safely."""
    names = [check_name(origin.name, "the origin") for origin in settings.origins]
    if len({*names}) < len(names):
        raise ClusterError("two origins of the ingress have the same name")
    for family in settings.families:
        check_name(family, "the family")
    if len({*settings.families}) < len(settings.families):
        raise ClusterError("a family of the ingress is named twice")
    places = [place for origin in settings.origins for place in (origin.listen, origin.listen_grpc) if place]
    if not places:
        raise ClusterError("the ingress has nothing to listen on: give an origin listen = HOST:PORT")
    places += [settings.listen_metrics] if settings.listen_metrics else []
    for place in places:
        match = _LISTEN.fullmatch(place)
        if not match or not 0 < int(match[2]) <= 65535:
            raise ClusterError(f"the ingress cannot listen on {place!r}: use HOST:PORT, with a port of 1 to 65535")
    if len({*places}) < len(places):
        raise ClusterError("two listen addresses of the ingress are the same")
    for path in (settings.folder, settings.tls_cert, settings.ca_file):
        if _UNPRINTABLE.search(path):
            raise ClusterError(f"{path!r}: paths of the ingress may hold neither spaces, quotes nor $, # and \\")
    for host in settings.allowed_hosts:
        if not _HOST.fullmatch(host):
            raise ClusterError(f"{host!r} is no host name")
    if not 1024 <= settings.body_bytes <= 64 << 20:
        raise ClusterError("body_bytes of the ingress must be 1024 to 67108864")


def render(
    settings: IngressSettings,
    upstreams: Iterable[Upstream] = (),
    weights: Mapping[str, Mapping[str, int]] | None = None,
    socket: str = "",
    read: bytes = b"",
) -> str:
    """Return HAProxy's configuration as text; with nodes and their weights by backend if it is to begin with some.

    `socket`: path of the stats socket.  `read`: contents of the files that HAProxy reads once, such as certificates.
    They and the text without nodes have a digest, which the process shows as its description, so that a controller
    knows whether one that runs was configured in the same way."""
    check_settings(settings)
    bare = _sections(settings, (), {}, socket, "")
    digest = hashlib.sha256("\n".join(bare).encode() + read).hexdigest()[:16]
    return "\n".join(_sections(settings, tuple(upstreams), weights or {}, socket, digest)) + "\n"


def description(configuration: str) -> str:
    """Return what a process with this configuration shows as its description."""
    return next(line.split(None, 1)[1] for line in configuration.splitlines() if line.startswith("  description "))


def server_words(settings: IngressSettings, upstream: Upstream, weight: int, *, grpc: bool) -> str:
    """Return address and options of a server, as a `server` line and the command `add server` both take them."""
    host, port = (upstream.grpc_host, upstream.grpc_port) if grpc else (upstream.host, upstream.port)
    words = [f"{_bracket(host)}:{port}"]
    if upstream.secure:
        # Checks of a server that is added at run time are not over TLS because it is.
        words += ["ssl", "verify", "required", "ca-file", settings.ca_file, "check-ssl"]
        words += ["alpn", "h2", "check-alpn", "http/1.1"] if grpc else []
    elif grpc:
        words += ["proto", "h2"]
    words += ["check", "check-proto", "h1", "addr", upstream.host, "port", str(upstream.port)] if grpc else ["check"]
    every_ms = check_every_ms(settings)
    words += [
        "inter",
        f"{every_ms}ms",
        "fastinter",
        f"{min(every_ms, 250)}ms",
        "downinter",
        f"{max(every_ms // 2, 50)}ms",
    ]
    # Five connections in a row that fail, and nothing is sent there until a check has succeeded.
    words += ["rise", "1", "fall", "2", "observe", "layer4", "error-limit", "5", "on-error", "mark-down"]
    return " ".join([*words, "pool-purge-delay", "2s", "weight", str(weight)])


def check_every_ms(settings: IngressSettings) -> int:
    """Return milliseconds between two checks of a server: `check_s`, longer if all together would be too many."""
    together = settings.nodes * len(backends(settings))
    return round(1000 * max(settings.check_s, together / _CHECKS_PER_S))


def _bracket(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _sections(
    settings: IngressSettings,
    upstreams: tuple[Upstream, ...],
    weights: Mapping[str, Mapping[str, int]],
    socket: str,
    digest: str,
) -> list[str]:
    lines = _general(settings, socket, digest)
    for origin in settings.origins:
        lines += _http_frontend(settings, origin) if origin.listen else []
        lines += _grpc_frontend(settings, origin) if origin.listen_grpc else []
    for backend in backends(settings):
        lines += _backend(settings, backend)
        own = weights.get(backend.name, {})
        for upstream in upstreams:
            if not backend.grpc or upstream.grpc_port:
                words = server_words(settings, upstream, own.get(upstream.name, 0), grpc=backend.grpc)
                lines.append(f"  server {upstream.name} {words}")
    lines += _LABEL_TABLE
    if settings.listen_metrics:
        lines += [
            "frontend metrics",
            f"  bind {settings.listen_metrics}",
            "  http-request use-service prometheus-exporter if { path /metrics }",
            f"  http-request return status 404 {_json('there are only /metrics here')}",
        ]
    if settings.ca_file:  # a server that is added at run time may only use files that are loaded already
        lines += [
            "backend loaded_files",
            f"  server none 127.0.0.1:1 ssl verify required ca-file {settings.ca_file} disabled",
        ]
    return lines


def _general(settings: IngressSettings, socket: str, digest: str) -> list[str]:
    bufsize = settings.body_bytes + _HEAD_BYTES + _REWRITE_BYTES
    return [
        "global",
        f"  stats socket {socket} mode 600 level admin expose-fd listeners",
        "  stats timeout 60s",
        f"  maxconn {settings.connections}",
        *([f"  nbthread {settings.threads}"] if settings.threads else []),
        f"  tune.bufsize {bufsize}",
        f"  tune.maxrewrite {_REWRITE_BYTES}",
        "  log stderr format raw local0 notice",
        "  spread-checks 20",
        f"  hard-stop-after {_ms(settings.answer_s + settings.idle_s)}",
        *([f"  description clover-ingress-{digest}"] if digest else []),
        "defaults",
        "  mode http",
        "  log global",
        "  option dontlognull",
        # A process that is replaced ends a connection by an answer that says so, never between two requests.
        "  option idle-close-on-response",
        # Also how long a retry waits if only one node is left to try: it may be the one that just failed.
        f"  timeout connect {_ms(settings.connect_s)}",
        f"  timeout client {_ms(max(settings.body_s, settings.answer_s))}",
        f"  timeout server {_ms(settings.answer_s)}",
        f"  timeout http-request {_ms(settings.head_s)}",
        f"  timeout http-keep-alive {_ms(settings.idle_s)}",
        "  timeout queue 5s",
        "  timeout check 2s",
        f"  retries {settings.retries}",
        "  option redispatch 1",
        "  retry-on conn-failure empty-response 503",
        "  balance roundrobin",
        "  http-reuse always",
        *(_error(status, text) for status, (text, _) in _ERRORS.items()),
    ]


def _grpc_errors() -> list[str]:
    """Return the ingress's own errors for clients of gRPC: a status and no body, without which a client that is still
    sending finds INTERNAL, and does not try again."""
    return [f"  http-error status {status} {_grpc(code, text)}" for status, (text, code) in _ERRORS.items()]


def _grpc(code: int, text: str) -> str:
    return f"hdr grpc-status {code} hdr grpc-message '{text}'"


def _error(status: int, text: str) -> str:
    return f"  http-error status {status} {_json(text)}" + (" hdr Retry-After 1" if status == 503 else "")


def _json(text: str) -> str:
    return f"""content-type application/json string '{{"error": "{text}"}}'"""


def _bind(settings: IngressSettings, listen: str, protocols: str) -> str:
    return f"  bind {listen}" + (f" ssl crt {settings.tls_cert} alpn {protocols}" if settings.tls_cert else "")


def _http_frontend(settings: IngressSettings, origin: IngressOrigin) -> list[str]:
    return [
        f"frontend from_http_{origin.name}",
        _bind(settings, origin.listen, "h2,http/1.1"),
        *_host_check(settings, origin.listen),
        f"  acl inference {INFERENCE_PATHS}",
        f"  acl inference {INFERENCE_FOLDERS}",
        f"  http-request return status 403 {_json(_REFUSED)} unless inference",
        f"  http-request return status 501 {_NO_BATCHES} if {_BATCHES}",
        f"  http-request wait-for-body time {_ms(settings.body_s)} if METH_POST",
        f"  http-request set-header {ORIGIN_HEADER} {origin.name}",
        "  http-request set-var(txn.named) str(yes) if { req.hdr(x-request-id) -m found }",
        # A node answers only to names that it knows, and knows this one always.
        "  http-request set-header Host localhost",
        *_families(settings, origin.name, grpc=False),
        f"  default_backend {IngressBackend(origin=origin.name, grpc=False).name}",
    ]


def _grpc_frontend(settings: IngressSettings, origin: IngressOrigin) -> list[str]:
    bind = _bind(settings, origin.listen_grpc, "h2")
    return [
        f"frontend from_grpc_{origin.name}",
        bind if settings.tls_cert else f"{bind} proto h2",
        "  timeout client 1h",  # a stream may be silent for as long as its client is there
        f"  acl operator path {_GRPC}/RepositoryModelLoad {_GRPC}/RepositoryModelUnload",
        f"  acl unary path {_GRPC}/ModelInfer",
        f"  http-request return status 403 {_grpc(7, _REFUSED)} if operator",  # PERMISSION_DENIED
        *_grpc_errors(),
        f"  http-request wait-for-body time {_ms(settings.body_s)} if unary",
        f"  http-request set-header {ORIGIN_HEADER} {origin.name}",
        *_families(settings, origin.name, grpc=True),
        f"  default_backend {IngressBackend(origin=origin.name, grpc=True).name}",
    ]


def _families(settings: IngressSettings, origin: str, *, grpc: bool) -> list[str]:
    """Return the lines that choose the backend of a request by its family."""
    lines = []
    for family in settings.families:
        if grpc:  # the name of the model is the first field of the request
            tests = [f"{{ path {_GRPC}/ModelInfer }} {{ req.body,ungrpc(1) -m str {family} }}"]
        else:
            tests = [f"{{ path /v2/models/{family} }}", f"{{ path_beg /v2/models/{family}/ }}"]
            tests.append(f"{{ path_beg /v1/ }} {{ req.body,json_query('$.model') -m str {family} }}")
        backend = IngressBackend(origin=origin, grpc=grpc, family=family)
        lines += [f"  use_backend {backend.name} if {test}" for test in tests]
    return lines


def _backend(settings: IngressSettings, backend: IngressBackend) -> list[str]:
    token = f' hdr Authorization "Bearer ${{{TOKEN_VARIABLE}}}"' if settings.token else ""
    # Streams may be silent for as long as both sides are there; a single answer may not take that long.
    unary = f"{{ path {_GRPC}/ModelInfer }}"
    stream = ["  timeout server 1h", f"  http-request set-timeout server {_ms(settings.answer_s)} if {unary}"]
    return [
        f"backend {backend.name}",
        *(stream if backend.grpc else []),
        "  option httpchk",
        f"  http-check send meth GET uri /v2/health/ready ver HTTP/1.1 hdr Host localhost{token}",
        "  http-check expect status 200",
        *(_grpc_errors() if backend.grpc else _LABELS),
    ]


def _host_check(settings: IngressSettings, listen: str) -> list[str]:
    """Return the lines that refuse other hosts, so that no web page reaches a local ingress by a name of its own."""
    host = listen.rpartition(":")[0].strip("[]")
    try:
        loopback = ipaddress.ip_address(host).is_loopback
    except ValueError:
        loopback = host == "localhost"
    if not settings.allowed_hosts and not loopback:
        return []
    hosts = {"localhost", host, *settings.allowed_hosts} - {"*", "0.0.0.0", "::"}
    answer = f"http-request return status 421 {_json('this host is not served here')}"
    return [
        f"  acl known_host req.hdr(host),host_only -i {' '.join(sorted({*hosts, *map(_bracket, hosts)}))}",
        f"  {answer} if {{ req.hdr(host) -m found }} !known_host",
    ]


def _ms(seconds: float) -> str:
    return f"{max(1, round(1000 * seconds))}ms"
