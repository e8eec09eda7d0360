"""The free list of a slab: which slots are taken, and which to take next.

Workers read a batch as one view of the slab where its slots are consecutive, and gather otherwise, so the allocator
prefers runs.  Free slots are bits of integers (chunks of 512, with one summary bit a chunk).  One row takes the next
free slot of the first `window`, from the lowest again at their end or once none is taken, and the lowest free slot
if all of these are taken.  Requests of many rows take the lowest run that fits, and where no chunk looked at has one,
the lowest single slots.
"""

from __future__ import annotations

_CHUNK = 512
_SEARCHED_CHUNKS = 16


def _first_run(bits: int, length: int) -> int:
    """Return the lowest position of `length` consecutive set bits, or -1: each step shortens every run of ones."""
    remaining = length - 1
    step = 1
    while remaining and bits:
        shift = min(step, remaining)
        bits &= bits >> shift
        remaining -= shift
        step <<= 1
    return (bits & -bits).bit_length() - 1


class SlotAllocator:
    """The slot numbers 0 .. `slots` - 1, free or taken; `window`: how many of the first are taken in turn."""

    __slots__ = ("_chunks", "_cursor", "_some", "_window", "free", "slots")

    def __init__(self, slots: int, window: int = 0) -> None:
        if slots < 1:
            raise ValueError("a slab needs at least one slot")
        if window < 0:
            raise ValueError("a window must not be negative")
        self._window = min(window, slots)
        self._cursor = 0
        self.slots = slots
        self.free = slots
        count = -(-slots // _CHUNK)
        self._chunks = [(1 << min(_CHUNK, slots - i * _CHUNK)) - 1 for i in range(count)]
        self._some = (1 << count) - 1

    def take_one(self) -> int:
        """Take the next slot for one row; -1 if none is free."""
        if self.free == self.slots:
            self._cursor = 0
        slot = next((slot for slot in range(self._cursor, self._window) if self._is_free(slot)), -1)
        if slot < 0:
            slot = self._lowest()
        else:
            index, offset = divmod(slot, _CHUNK)
            self._chunks[index] ^= 1 << offset
            if not self._chunks[index]:
                self._some ^= 1 << index
            self.free -= 1
        self._cursor = slot + 1
        return slot

    def _is_free(self, slot: int) -> bool:
        return bool(self._chunks[slot // _CHUNK] >> slot % _CHUNK & 1)

    def _lowest(self) -> int:
        """Take the lowest free slot; -1 if none is free."""
        some = self._some
        if not some:
            return -1
        index = (some & -some).bit_length() - 1
        bits = self._chunks[index]
        low = bits & -bits
        bits ^= low
        self._chunks[index] = bits
        if not bits:
            self._some = some ^ (1 << index)
        self.free -= 1
        return index * _CHUNK + low.bit_length() - 1

    def take(self, count: int) -> list[int] | None:
        """Take `count` slots in rising order, consecutive if possible; None (nothing taken) if too few are free."""
        if count < 1:
            raise ValueError("at least one slot is taken")
        if count > self.free:
            return None
        if count == 1:
            return [self.take_one()]
        if count <= _CHUNK:
            some = self._some
            for _ in range(_SEARCHED_CHUNKS):
                if not some:
                    break
                low = some & -some
                index = low.bit_length() - 1
                start = _first_run(self._chunks[index], count)
                if start >= 0:
                    bits = self._chunks[index] ^ (((1 << count) - 1) << start)
                    self._chunks[index] = bits
                    if not bits:
                        self._some ^= low
                    self.free -= count
                    first = index * _CHUNK + start
                    return list(range(first, first + count))
                some ^= low
        return [self._lowest() for _ in range(count)]

    def give(self, slot: int) -> None:
        """Give one slot back.  ValueError if it is not taken."""
        index, offset = divmod(slot, _CHUNK)
        bit = 1 << offset
        if not 0 <= slot < self.slots or self._chunks[index] & bit:
            raise ValueError(f"slot {slot} is not taken")
        self._chunks[index] |= bit
        self._some |= 1 << index
        self.free += 1
