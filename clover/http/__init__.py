"""Clover's front end: the Open Inference Protocol over HTTP/1.1.

From the wire inwards: `heads` and `chunks` (strict framing, sans-IO), `server_state` (what the connections of one
socket share), `exchange` (one request and its answer), `inference` with `oip` (decode, run, encode), `connection` on
`outgoing` (one client: order, deadlines, flow control), `streams` (answers that stay open), `access` (who may call, who
may change something), `api` (every other path, and the OpenAPI document), `frontend` (sockets, TLS, drain).  Each
imports only those before it.  `loop_lag` (how long what clients send waits for the loop) stands by itself.

Two rules hold everywhere here.  A request that infers costs no Task and no Future: the data plane calls back.  An
answer is written at most once per connection and turn of the loop, head and body together.
"""

from clover.http.frontend import Frontend, Inherited, Mounted
from clover.http.server_state import HttpStats
from clover.http.streams import EventStreams

__all__ = ["EventStreams", "Frontend", "HttpStats", "Inherited", "Mounted"]
