/* Random numbers with a seed and a stream, the same ones wherever they are drawn.

   xoshiro256++ (Blackman and Vigna, 2019) makes the bits, splitmix64 turns seed and stream into its state.  Whatever
   follows a distribution is made by inversion, one draw a number: a change of parameters then moves every number a
   little instead of shifting the whole sequence.  Only +, -, *, /, sqrt and log are used, in a fixed order and without
   contraction, so that a twin in Python (tests/reference/random.py) gives the same doubles to the last bit. */

#ifndef CLOVER_RANDOM_H
#define CLOVER_RANDOM_H

#include <math.h>
#include <stdint.h>

typedef struct {
    uint64_t state[4];
} clover_random;

static inline uint64_t clover_mix64(uint64_t z) {
    z = (z ^ (z >> 30)) * UINT64_C(0xBF58476D1CE4E5B9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94D049BB133111EB);
    return z ^ (z >> 31);
}

/* Streams of one seed are independent of each other for all that is known.  Stream 0 is plain splitmix64. */
static inline void clover_random_seed(clover_random *random, uint64_t seed, uint64_t stream) {
    uint64_t at = seed ^ clover_mix64(stream);
    for (int i = 0; i < 4; i++) {
        at += UINT64_C(0x9E3779B97F4A7C15);
        random->state[i] = clover_mix64(at);
    }
}

static inline uint64_t clover_random_bits(clover_random *random) {
    uint64_t *s = random->state;
    uint64_t sum = s[0] + s[3];
    uint64_t answer = ((sum << 23) | (sum >> 41)) + s[0];
    uint64_t shifted = s[1] << 17;
    s[2] ^= s[0];
    s[3] ^= s[1];
    s[1] ^= s[2];
    s[0] ^= s[3];
    s[2] ^= shifted;
    s[3] = (s[3] << 45) | (s[3] >> 19);
    return answer;
}

/* An integer in 0..bound-1.  The high word of the product, whose bias is below bound / 2^64. */
static inline uint64_t clover_random_below(clover_random *random, uint64_t bound) {
    return (uint64_t)(((unsigned __int128)clover_random_bits(random) * bound) >> 64);
}

/* Uniform in (0, 1]: never 0, so that its logarithm exists. */
static inline double clover_random_uniform(clover_random *random) {
    return (double)((clover_random_bits(random) >> 11) + 1) * 0x1p-53;
}

/* Exponential with mean 1. */
static inline double clover_random_exponential(clover_random *random) { return -log(clover_random_uniform(random)); }

static inline double clover_polynomial(const double *highest_first, double x) {
    double value = highest_first[0];
    for (int i = 1; i < 8; i++) {
        value = value * x + highest_first[i];
    }
    return value;
}

/* The quantile p, 0 < p < 1, of the standard normal distribution, to about 16 digits: Wichura's algorithm AS 241
   (PPND16, Applied Statistics 37, 1988), quotients of polynomials for the middle, the flanks and the tails. */
static inline double clover_normal_quantile(double p) {
    static const double middle_above[8] = {
        2509.0809287301226727, 33430.575583588128105, 67265.770927008700853, 45921.953931549871457,
        13731.693765509461125, 1971.5909503065514427, 133.14166789178437745, 3.387132872796366608};
    static const double middle_below[8] = {
        5226.495278852854561, 28729.085735721942674, 39307.89580009271061, 21213.794301586595867,
        5394.1960214247511077, 687.1870074920579083, 42.313330701600911252, 1.0};
    static const double flank_above[8] = {
        7.7454501427834140764e-4, 0.0227238449892691845833, 0.24178072517745061177, 1.27045825245236838258,
        3.64784832476320460504, 5.7694972214606914055, 4.6303378461565452959, 1.42343711074968357734};
    static const double flank_below[8] = {
        1.05075007164441684324e-9, 5.475938084995344946e-4, 0.0151986665636164571966, 0.14810397642748007459,
        0.68976733498510000455, 1.6763848301838038494, 2.05319162663775882187, 1.0};
    static const double tail_above[8] = {
        2.01033439929228813265e-7, 2.71155556874348757815e-5, 0.0012426609473880784386, 0.026532189526576123093,
        0.29656057182850489123, 1.7848265399172913358, 5.4637849111641143699, 6.6579046435011037772};
    static const double tail_below[8] = {
        2.04426310338993978564e-15, 1.4215117583164458887e-7, 1.8463183175100546818e-5, 7.868691311456132591e-4,
        0.0148753612908506148525, 0.13692988092273580531, 0.59983220655588793769, 1.0};
    double q = p - 0.5;
    double r, value;
    if (fabs(q) <= 0.425) {
        r = 0.180625 - q * q;
        return clover_polynomial(middle_above, r) * q / clover_polynomial(middle_below, r);
    }
    r = sqrt(-log(q < 0.0 ? p : 1.0 - p));
    if (r <= 5.0) {
        value = clover_polynomial(flank_above, r - 1.6) / clover_polynomial(flank_below, r - 1.6);
    } else {
        value = clover_polynomial(tail_above, r - 5.0) / clover_polynomial(tail_below, r - 5.0);
    }
    return q < 0.0 ? -value : value;
}

/* Standard normal, from a p that is never 0 nor 1 and as often p as 1 - p. */
static inline double clover_random_normal(clover_random *random) {
    return clover_normal_quantile(((double)(clover_random_bits(random) >> 12) + 0.5) * 0x1p-52);
}

#endif
