"""Clover's front end: the Open Inference Protocol over HTTP/1.1.

From the wire inwards: `heads` and `chunks` (strict framing, sans-IO), `connection` (one client: order, deadlines, flow
control), `hub` (what the connections of one front end share), `exchange` (one request and its answer), `routes` (which
path is what), `inference` with `oip` and `tensors` (decode, run, encode), `frontend` (sockets, TLS, drain).

Two rules hold everywhere here.  A request that infers costs no Task and no Future: the data plane calls back.  An
answer is written at most once per connection and turn of the loop, head and body together.
"""

from clover.http.frontend import Frontend
from clover.http.stats import HttpStats

__all__ = ["Frontend", "HttpStats"]
