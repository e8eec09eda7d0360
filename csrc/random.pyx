"""Random numbers with a seed and a stream, as the kernels draw them: `random.h` for Python."""

from libc.stdint cimport uint64_t


cdef class Random:
    """A sequence fixed by `seed` and `stream`, both 0..2^64-1.  One draw of `bits` makes each number."""

    cdef clover_random _random

    def __cinit__(self, uint64_t seed, uint64_t stream=0):
        clover_random_seed(&self._random, seed, stream)

    def bits(self):
        """Return 64 random bits as an integer."""
        return clover_random_bits(&self._random)

    def below(self, uint64_t bound):
        """Return an integer in 0..bound-1.  ValueError for a bound of 0."""
        if bound == 0:
            raise ValueError("the bound must be positive")
        return clover_random_below(&self._random, bound)

    def uniform(self):
        """Return a float in (0, 1]."""
        return clover_random_uniform(&self._random)

    def exponential(self):
        """Return an exponential number with mean 1."""
        return clover_random_exponential(&self._random)

    def normal(self):
        """Return a standard normal number."""
        return clover_random_normal(&self._random)


def normal_quantile(double p):
    """Return the quantile `p` of the standard normal distribution.  ValueError if not 0 < p < 1."""
    if not 0.0 < p < 1.0:
        raise ValueError("a normal quantile needs 0 < p < 1")
    return clover_normal_quantile(p)
