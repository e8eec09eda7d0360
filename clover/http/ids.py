"""Request ids of our own: consecutive numbers, each with a tag that no one else can make.

An id is a random prefix, a number and the number's SipHash-2-4 (a keyed pseudo-random function) under a random key of
128 bits that never leaves this process.  Whoever knows some ids guesses the tag of another one with a chance of 2**-64,
so naming an id is proof of having read it.  Checking one takes no memory.
"""

from __future__ import annotations

import os

from clover._native.wire import sealed, unsealed


class RequestIds:
    """Makes the ids of a server, shared by its sockets, and recognises them."""

    __slots__ = ("_high", "_low", "_number", "_prefix")

    def __init__(self) -> None:
        self._prefix = os.urandom(6).hex().encode() + b"-"
        self._low = int.from_bytes(os.urandom(8), "little")
        self._high = int.from_bytes(os.urandom(8), "little")
        self._number = 0

    def take(self) -> int:
        """Return the next number, from 1 on."""
        self._number += 1
        return self._number

    def text(self, number: int) -> bytes:
        """Return the id of a number."""
        return sealed(self._prefix, number, self._low, self._high)

    def number_of(self, text: str) -> int:
        """Return the number of an id of ours; 0 for any other text."""
        number: int | None = unsealed(self._prefix, text.encode(), self._low, self._high)
        return number or 0
