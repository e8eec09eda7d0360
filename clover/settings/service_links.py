"""Variables that Kubernetes puts into every container of a namespace, a set for each Service: no settings of ours.

A Service named `clover` gives CLOVER_SERVICE_HOST=10.0.0.1, CLOVER_SERVICE_PORT=8080 (and one of each named port),
CLOVER_PORT=tcp://10.0.0.1:8080, and of each port CLOVER_PORT_8080_TCP with the same URL and its _PROTO, _PORT and
_ADDR; one named `clover-api` gives CLOVER_API_SERVICE_HOST and so on.  A variable is one of these only if both its name
and its value have the form, so that a mistyped setting stays an error, and CLOVER_PORT=9000 or CLOVER_GRPC_PORT=9000 a
port to listen on.

Docker's links, which are deprecated, have the forms with _PORT too.  What else they set (CLOVER_NAME=/a/b and
CLOVER_ENV_*) has no form of its own, and is refused like anything unknown.
"""

from __future__ import annotations

import ipaddress
import re

_SERVICE = r"CLOVER(?:_[A-Z0-9_]*[A-Z0-9])?"
_PORT = rf"{_SERVICE}_PORT_([1-9][0-9]*)_(TCP|UDP|SCTP)"
_HOST = re.compile(rf"{_SERVICE}_SERVICE_HOST|{_PORT}_ADDR")
_NUMBER = re.compile(rf"{_SERVICE}_SERVICE_PORT(?:_[A-Z0-9_]+)?")
_FIRST = re.compile(rf"{_SERVICE}_PORT")
_EACH = re.compile(_PORT)
_PART = re.compile(rf"{_PORT}_(?:PROTO|PORT)")
_URL = re.compile(r"(tcp|udp|sctp)://(?:\[([0-9A-Fa-f:.]+)\]|([0-9.]+)):([0-9]+)")


def is_service_link(name: str, value: str) -> bool:
    """Return whether a variable is one that Kubernetes sets for a Service."""
    # A name may have two of the forms, as that of a Service may end like one; the value decides.
    url = _URL.fullmatch(value)
    if url is not None:
        protocol, six, four, port = url.groups()
        each = _EACH.fullmatch(name)
        fits = _FIRST.fullmatch(name) or (each and (port, protocol.upper()) == each.groups())
        return bool(fits) and _is_address(six or four) and _is_port(port)
    if _is_address(value):
        return _HOST.fullmatch(name) is not None
    part = _PART.fullmatch(name)
    if part is not None and value == (part[1] if name.endswith("_PORT") else part[2].lower()):
        return True
    return _is_port(value) and _NUMBER.fullmatch(name) is not None


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _is_port(text: str) -> bool:
    return re.fullmatch("[1-9][0-9]{0,4}", text) is not None and int(text) <= 65535
