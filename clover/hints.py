"""What messages of several commands share: how this program was called, and the nearest known word."""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Iterable

_LONGEST_WORD = 64


def program() -> str:
    """Return what the user types before a command: `clover` if the console script runs, else `python -m clover`."""
    called = getattr(sys, "argv", None) or [""]
    return "clover" if os.path.basename(called[0]) == "clover" else "python -m clover"


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return '; did you mean X?' for the closest of `known`, or nothing."""
    if len(word) > _LONGEST_WORD:  # the comparison takes time with the length, and words may come from a client
        return ""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"; did you mean {close[0]}?" if close else ""
