"""A histogram of non-negative integers whose relative error is bounded over a huge range.

Buckets are log-linear: up to 2^k values are counted exactly; above, every power of two is divided into 2^(k-1) equal
buckets, so a bucket is never wider than its values divided by 2^(k-1).  With `digits` decimal digits, k is chosen so
that this is at most 10^-digits.  Recording is a bit count and an increment; two histograms of one layout add and
subtract bucket by bucket, so a window is the difference of two copies and a total the sum of its parts, exactly.
"""

from libc.math cimport INFINITY, isnan
from libc.stdint cimport UINT64_MAX, int64_t, uint64_t
from cython.view cimport array as cvarray

cdef class Histogram:
    """Counts of values; what lies below `lowest` or above `highest` is counted at that end, and summed as it is.

    `lowest` is the finest resolution asked for (in the values' unit), `digits` 1..4 the decimal digits kept.
    """

    def __cinit__(self, int64_t lowest=1, int64_t highest=3_600_000_000_000, int digits=2):
        if lowest < 1 or highest < 2 * lowest or not 1 <= digits <= 4:
            raise ValueError("a histogram needs 1 <= lowest, 2 * lowest <= highest and digits in 1..4")
        self.lowest = lowest
        self.highest = highest
        self.digits = digits
        self._unit_bits = clover_bits(<uint64_t>lowest) - 1
        self._sub_bits = clover_bits(2 * <uint64_t>(10 ** digits) - 1)
        self._size = self._index(<uint64_t>highest) + 1
        self._counts = cvarray((self._size,), sizeof(uint64_t), "Q" if sizeof(unsigned long) != 8 else "L")
        self._clear()

    cdef void _clear(self) noexcept nogil:
        cdef Py_ssize_t i
        for i in range(self._size):
            self._counts[i] = 0
        self._count = 0
        self._sum = 0

    cdef Py_ssize_t _index(self, uint64_t value) noexcept nogil:
        cdef uint64_t units
        cdef int shift
        if value > <uint64_t>self.highest:
            value = <uint64_t>self.highest
        units = value >> self._unit_bits
        shift = clover_bits(units) - self._sub_bits
        if shift <= 0:
            return <Py_ssize_t>units
        return (<Py_ssize_t>shift << (self._sub_bits - 1)) + <Py_ssize_t>(units >> shift)

    cdef uint64_t _top(self, Py_ssize_t index) noexcept nogil:
        """Return the largest value that falls into bucket `index`."""
        cdef Py_ssize_t half = <Py_ssize_t>1 << (self._sub_bits - 1)
        cdef int shift = <int>(index // half) - 1
        if shift < 0:
            shift = 0
        cdef uint64_t top = ((<uint64_t>(index - shift * half) + 1) << (shift + self._unit_bits)) - 1
        return top if top < <uint64_t>self.highest else <uint64_t>self.highest

    cdef int _same(self, Histogram other) except -1:
        if self.lowest != other.lowest or self.highest != other.highest or self.digits != other.digits:
            raise ValueError("histograms of different layouts do not combine")
        return 0

    cpdef int record(self, int64_t value, int64_t count=1) except -1:
        """Count `value` `count` times.  ValueError if either is negative."""
        if value < 0 or count < 0:
            raise ValueError("a histogram counts values >= 0, and counts >= 0")
        self._counts[self._index(<uint64_t>value)] += <uint64_t>count
        self._count += <uint64_t>count
        self._sum += <u128><uint64_t>value * <u128><uint64_t>count
        return 0

    @property
    def count(self):
        """Values counted."""
        return self._count

    @property
    def sum(self):
        """Exact sum of the values counted."""
        return (int(<uint64_t>(self._sum >> 64)) << 64) | <uint64_t>(self._sum & <u128>UINT64_MAX)

    def quantile(self, double q):
        """Return a value that at least a share `q` of those counted do not exceed, or 0 if there are none.

        It is overstated by at most 10^-digits.
        """
        cdef double wanted
        cdef uint64_t rank, seen = 0
        cdef Py_ssize_t i
        if not 0.0 <= q <= 1.0:
            raise ValueError("q must be in 0..1")
        if self._count == 0:
            return 0
        wanted = q * <double>self._count
        rank = <uint64_t>wanted
        if <double>rank < wanted:
            rank += 1
        rank = min(max(rank, <uint64_t>1), self._count)
        for i in range(self._size):
            seen += self._counts[i]
            if seen >= rank:
                return self._top(i)
        raise AssertionError("the counts of a histogram do not add up")

    def buckets(self, bounds):
        """Count, for each of the ascending `bounds`, the values that do not exceed it (within the relative error)."""
        cdef double bound, before = -INFINITY
        cdef uint64_t seen = 0
        cdef Py_ssize_t i = 0, end
        cdef list cumulative = []
        for bound in bounds:
            if isnan(bound) or bound < before:
                raise ValueError("bounds must ascend")
            before = bound
            if bound < 0.0:
                end = 0
            elif bound >= <double>self.highest:
                end = self._size
            else:
                end = self._index(<uint64_t>bound) + 1
            while i < end:
                seen += self._counts[i]
                i += 1
            cumulative.append(seen)
        return cumulative

    def merge(self, Histogram other not None):
        """Add the counts of `other`, of the same layout."""
        cdef Py_ssize_t i
        self._same(other)
        for i in range(self._size):
            self._counts[i] += other._counts[i]
        self._count += other._count
        self._sum += other._sum

    def subtract(self, Histogram other not None):
        """Take the counts of `other` away.  ValueError, and nothing changes, unless they are part of these."""
        cdef Py_ssize_t i
        self._same(other)
        for i in range(self._size):
            if other._counts[i] > self._counts[i]:
                raise ValueError("the other histogram is no part of this one")
        if other._sum > self._sum:
            raise ValueError("the other histogram is no part of this one")
        for i in range(self._size):
            self._counts[i] -= other._counts[i]
        self._count -= other._count
        self._sum -= other._sum

    def copy(self):
        """Return an independent histogram with the same counts."""
        cdef Histogram twin = Histogram(self.lowest, self.highest, self.digits)
        twin._counts[:] = self._counts
        twin._count = self._count
        twin._sum = self._sum
        return twin

    def reset(self):
        """Set all counts to 0."""
        self._clear()
