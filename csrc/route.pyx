"""Which lane serves the next row: quotas kept row by row, not by chance.

Every lane holds a credit, the rows it is owed.  A choice shares one row out among the permitted lanes in proportion
to their quotas, gives the row to the lane that is then owed most (the lowest index among equals), and takes one row
from its credit.  Credits of the lanes sum to what they summed to before, and the lane owed most always has a credit
above the mean, so no credit runs away: each lane's served rows stay within a few rows of its quota however many rows
pass, also when the permitted set changes from row to row.  Random routing would stray by the square root of the rows.

A quota speaks of the rows that could have gone elsewhere: a row with one permitted lane changes no credit.
"""

from libc.math cimport isfinite
from libc.stdint cimport uint32_t, uint64_t


cdef enum:
    MAX_LANES = 64

cdef double TIE = 1e-9  # rows; less than this is rounding, and equals take turns


cdef class Quota:
    """Quotas over `lanes` lanes (1..64), all equal at first.  Lane i is permitted by bit i of a mask."""

    def __cinit__(self, lanes):
        cdef int i
        if not 1 <= lanes <= MAX_LANES:
            raise ValueError(f"lanes must be in 1..{MAX_LANES}, not {lanes}")
        self._lanes = lanes
        self._all = (<uint64_t>0xFFFFFFFFFFFFFFFF) >> (MAX_LANES - self._lanes)
        self._shared = self._all
        for i in range(self._lanes):
            self._share[i] = 1.0
            self._credit[i] = 0.0

    def set_shares(self, shares):
        """Replace the quotas: one finite number >= 0 a lane, in any scale.  Lanes that keep a share keep their credit.

        ValueError for another length or a bad number; the old quotas then stay.
        """
        cdef list values = [float(share) for share in shares]
        cdef double share
        cdef int i
        if len(values) != self._lanes:
            raise ValueError(f"{len(values)} shares for {self._lanes} lanes")
        for share in values:
            if not isfinite(share) or share < 0.0:
                raise ValueError("shares must be finite and not negative")
        self._shared = 0
        for i in range(self._lanes):
            share = values[i]
            self._share[i] = share
            if share > 0.0:
                self._shared |= <uint64_t>1 << i
            else:
                self._credit[i] = 0.0

    cdef int _choose(self, uint64_t mask) noexcept nogil:
        """Return the lane for one row among `mask`, a non-empty subset of the lanes."""
        cdef uint64_t able = mask & self._shared
        cdef double total = 0.0
        cdef int best = -1
        cdef int i
        if able == 0 or able & (able - 1) == 0:  # no lane with a share, or only one
            if able != 0:
                mask = able
            i = 0
            while not (mask >> i) & 1:
                i += 1
            return i
        for i in range(self._lanes):
            if (able >> i) & 1:
                total += self._share[i]
        for i in range(self._lanes):
            if (able >> i) & 1:
                self._credit[i] += self._share[i] / total
                if best < 0 or self._credit[i] > self._credit[best] + TIE:
                    best = i
        self._credit[best] -= 1.0
        return best

    cdef uint64_t _permitted(self, mask) except 0:
        cdef uint64_t bits = mask & self._all
        if bits == 0:
            raise ValueError("the mask permits no lane")
        return bits

    cpdef int choose(self, mask) except -1:
        """Return the lane for the next row, the lowest one if no permitted lane has a share.

        ValueError if none is permitted.
        """
        return self._choose(self._permitted(mask))

    def choose_many(self, mask, Py_ssize_t k, uint32_t[::1] out):
        """Choose lanes as `k` calls of `choose` do, into `out[:k]`."""
        cdef uint64_t bits = self._permitted(mask)
        cdef Py_ssize_t i
        if not 0 <= k <= out.shape[0]:
            raise ValueError(f"{k} rows do not fit into {out.shape[0]}")
        with nogil:
            for i in range(k):
                out[i] = <uint32_t>self._choose(bits)

    @property
    def credits(self):
        """What each lane is owed, in rows."""
        return [self._credit[i] for i in range(self._lanes)]
