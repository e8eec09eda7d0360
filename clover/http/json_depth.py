"""How deep a JSON text nests, found before it is parsed.

A parser recurses as its input nests, so the depth is bounded first.  Most bodies hold fewer brackets than the limit in
all, and two counts are enough.  Otherwise strings are dropped first (a bracket in one must neither add to the depth nor
take from it), then everything but brackets, and the depth is summed block by block.
"""

from __future__ import annotations

import re

import numpy as np

_BRACKETS = b"[]{}"
_OTHERS = bytes(code for code in range(256) if code not in _BRACKETS)
# Matches from any quote on, closed or not, so that no input makes the search start over: linear.
_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+(?:"|\\?\Z)', re.DOTALL)
_STEP = np.zeros(256, np.int8)
_STEP[list(b"[{")] = 1
_STEP[list(b"]}")] = -1
_BLOCK = 1 << 16


def within_depth(text: bytes, limit: int) -> bool:
    """Return whether `text`, if it is JSON, nests at most `limit` deep."""
    if text.count(b"[") + text.count(b"{") <= limit:
        return True
    return _deepest(_STRING.sub(b"", text).translate(None, _OTHERS)) <= limit


def _deepest(brackets: bytes) -> int:
    steps = _STEP[np.frombuffer(brackets, np.uint8)]
    deepest = depth = 0
    for start in range(0, len(steps), _BLOCK):
        running = np.cumsum(steps[start : start + _BLOCK], dtype=np.int32)
        deepest = max(deepest, depth + int(running.max()))
        depth += int(running[-1])
    return deepest
