"""Digests by which a figure can be traced to its inputs, and a change of either is seen.

A digest is the sha256 of canonical JSON: keys sorted, no spaces, UTF-8, numbers as Python writes them.  One is of the
inputs (runs with their configurations, profiles, factors, the ledger's entries, the period; of a cluster, its nodes'
reports), the other of the whole report but its seal.  With a key, both are signed by HMAC-SHA256, so that only who has
the key can make a seal.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from typing import Any, TypeVar

import msgspec

from clover.report.cluster_records import ClusterReport
from clover.report.records import Report, Seal

R = TypeVar("R", Report, ClusterReport)
_INPUTS = ("schema", "clover", "server", "period", "start", "end", "boundary", "inputs", "reports")
"""Fields that hold what the figures follow from, of the reports that have them."""
_EMPTY = Seal(inputs_sha256="", report_sha256="")


def canonical(value: Any) -> bytes:
    """Return `value` (what JSON can hold) as canonical JSON.  Raises ValueError for what is no number."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode()


def sha256(value: Any) -> str:
    """Return the digest of `value`, hexadecimal."""
    return hashlib.sha256(canonical(value)).hexdigest()


def unsealed(report: R) -> R:
    """Return the report without its seal, as it will be read again: a number that is whole may be an int where its
    field is a float."""
    found = msgspec.json.decode(msgspec.json.encode(report), type=type(report))
    return msgspec.structs.replace(found, seal=_EMPTY)


def sealed(report: R, key: bytes = b"") -> R:
    """Return the report with its seal, signed if there is a key."""
    report = unsealed(report)
    plain = msgspec.to_builtins(report)
    inputs = sha256({name: plain[name] for name in _INPUTS if name in plain})
    whole = sha256(plain)
    return msgspec.structs.replace(
        report, seal=Seal(inputs_sha256=inputs, report_sha256=whole, hmac_sha256=_signature(inputs, whole, key))
    )


def _signature(inputs: str, whole: str, key: bytes) -> str:
    return hmac.new(key, f"{inputs}\n{whole}".encode(), hashlib.sha256).hexdigest() if key else ""


def faults(report: R, key: bytes = b"") -> list[str]:
    """Return what is wrong with the seal of a report, in words; nothing if it holds.  Without a key a signature is not
    checked."""
    said, due = report.seal, sealed(report, key).seal
    found = []
    if said.inputs_sha256 != due.inputs_sha256:
        found.append(
            f"the inputs are not those of the seal: their digest is {due.inputs_sha256}, not {said.inputs_sha256}"
        )
    if said.report_sha256 != due.report_sha256:
        found.append(
            f"the figures are not those of the seal: their digest is {due.report_sha256}, not {said.report_sha256}"
        )
    if key and not said.hmac_sha256:
        found.append("it is not signed, though a key was given")
    elif key and not hmac.compare_digest(said.hmac_sha256.encode(), due.hmac_sha256.encode()):  # text: ASCII only
        found.append("it was not signed with this key")
    return found
