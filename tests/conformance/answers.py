"""What every run of the suite asks after each case, and whether answers are right."""

from __future__ import annotations

from tests.conformance.oip_cases import GOOD_TEXT
from tests.support.http_fakes import request

GOOD = request("POST", "/v2/models/identity_fp32/infer", GOOD_TEXT.encode())


def fits(found: list[int], right: tuple[tuple[int, ...], ...]) -> bool:
    """Return whether answers are those that a case allows."""
    padded = [*found, *([0] * (len(right) - len(found)))]
    return len(found) <= len(right) and all(one in some for one, some in zip(padded, right, strict=True))
