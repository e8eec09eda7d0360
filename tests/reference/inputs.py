"""Which inputs came before: a digest of a row of the slab, and a bounded memory of digests (see csrc/inputs.pyx)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

_BITS = (1 << 64) - 1
_ODD = (0xA0761D6478BD642F, 0xE7037ED1A0B428DB, 0x8EBC6AF09C88C6E3, 0x589965CC75374CC3)
_LINE, _WHOLE, _EDGE, _LEAST, _MOST = 64, 65_536, 4096, 64, 1 << 24


def _fold(a: int, b: int) -> int:
    product = a * b
    return (product & _BITS) ^ (product >> 64)


def _lines(row: bytes, keys: list[int]) -> list[bytes]:
    size = len(row)
    places = list(range(0, size, _LINE))
    if size > _WHOLE:
        rest = size - 2 * _EDGE
        lines = max(rest // (32 * _LINE), _LEAST)
        ends = [_EDGE + line * rest // lines for line in range(lines + 1)]
        places = [*range(0, _EDGE, _LINE)]
        for line in range(1, lines + 1):
            room = ends[line] - ends[line - 1] - _LINE + 1
            places.append(ends[line - 1] + _fold(keys[0] ^ line, _ODD[1]) % room)
        places += range(size - _EDGE, size, _LINE)
    return [row[at : at + _LINE].ljust(_LINE, b"\0") for at in places]


def _digest(row: bytes, key: int, before: int) -> int:
    keys = [_fold(key ^ _ODD[lane], _ODD[(lane + 1) & 3]) for lane in range(4)]
    state = [each ^ before for each in keys]
    for line in _lines(row, keys):
        for lane in range(4):
            first, second = np.frombuffer(line, "<u8", 2, 16 * lane).tolist()
            state[lane] = _fold(first ^ keys[lane], second ^ state[lane])
    return _fold(
        _fold(state[0] ^ len(row), state[1] ^ keys[0]), _fold(state[2] ^ keys[1], state[3] ^ keys[2]) ^ keys[3]
    )


class Digests:
    """Digests of rows that lie in `regions`, arrays [slots, ...]; the secret `key` has 64 bits."""

    def __init__(self, regions: list[NDArray[Any]], key: int) -> None:
        if any(not region.ndim or not len(region) for region in regions):
            raise ValueError("the rows have no axis of slots")
        if len({len(region) for region in regions}) > 1:
            raise ValueError("the regions differ in slots")
        self._regions = regions
        self._slots = len(regions[0]) if regions else -1
        self._key = key

    def row(self, slot: int) -> int:
        """Return the digest of what lies in `slot` of all regions."""
        if not 0 <= slot < self._slots:
            raise IndexError(f"slot {slot} is outside 0..{self._slots - 1}")
        found = 0
        for region in self._regions:
            found = _digest(region[slot : slot + 1].tobytes(), self._key, found)
        return found

    def more(self, before: int, data: bytes | memoryview | NDArray[Any]) -> int:
        """Return the digest of `data`, bytes or an array of any strides, after that of something `before` it."""
        return _digest(data if isinstance(data, bytes) else data.tobytes(), self._key, before)


class Recent:
    """The last digests that were new: `capacity` of them at least, twice as many at most."""

    def __init__(self, capacity: int) -> None:
        if not 1 <= capacity <= _MOST:
            raise ValueError(f"a memory holds 1 to {_MOST} digests, not {capacity}")
        self.capacity = capacity
        self._young: set[int] = set()
        self._old: set[int] = set()

    def holds(self, digest: int) -> bool:
        """Return whether `digest` came before."""
        return (digest or 1) in self._young or (digest or 1) in self._old

    def add(self, digest: int) -> bool:
        """Remember `digest`; return whether it is new."""
        if self.holds(digest):
            return False
        self._young.add(digest or 1)
        if len(self._young) == self.capacity:
            self._young, self._old = set(), self._young
        return True

    def clear(self) -> None:
        """Remove all digests."""
        self._young, self._old = set(), set()
