from libc.stdint cimport uint64_t

cdef extern from "random.h" nogil:
    ctypedef struct clover_random:
        pass

    void clover_random_seed(clover_random *random, uint64_t seed, uint64_t stream)
    uint64_t clover_random_bits(clover_random *random)
    uint64_t clover_random_below(clover_random *random, uint64_t bound)
    double clover_random_uniform(clover_random *random)
    double clover_random_exponential(clover_random *random)
    double clover_random_normal(clover_random *random)
    double clover_normal_quantile(double p)
