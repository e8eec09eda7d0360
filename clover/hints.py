"""What messages of several commands share: how this program was called, and the nearest known word."""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Iterable

_LONGEST_WORD = 64
_JOINTS = frozenset("-_.")
_MOST = 3
"""Words that one may have meant, at most; of more, the one that looks most alike is named."""


def program() -> str:
    """Return what the user types before a command: `clover` if the console script runs, else `python -m clover`."""
    called = getattr(sys, "argv", None) or [""]
    return "clover" if os.path.basename(called[0]) == "clover" else "python -m clover"


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return ' (did you mean X?)' for the known word that `word` is a part of or nearly is; empty if none is near.

    A word of which some go on (`--slo`, `--slo-ms`) beats those that merely look alike (`--slots`).
    """
    if not word or len(word) > _LONGEST_WORD:  # comparing takes time with the length, and words may come from a client
        return ""
    words = list(known)
    longer = sorted(other for other in words if other.startswith(word) and other[len(word) :][:1] in _JOINTS)
    if not 0 < len(longer) <= _MOST:
        longer = difflib.get_close_matches(word, words, n=1, cutoff=0.6)
    return f" (did you mean {' or '.join(longer)}?)" if longer else ""
