/* Sums of exponentials over a row of floats, and its largest numbers, four numbers at a time: where libm's `expf` is
   called for each number, the score of a long row costs three times as much.

   Vectors are GCC's and Clang's own, which become whatever the machine has (SSE2 on x86-64, NEON on aarch64) at every
   level of optimisation.  Every lane follows IEEE 754, and setup.py forbids to fuse operations (-ffp-contract=off), so
   that all machines find the same sums.  Masks choose between lanes: a conditional expression for each lane may cost
   compilers the vector.

   The last numbers of a row are filled up to four with -inf, whose exponential is 0. */

#ifndef CLOVER_EXP_H
#define CLOVER_EXP_H

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

typedef float clover_four __attribute__((vector_size(16)));
typedef uint32_t clover_bits __attribute__((vector_size(16)));
typedef double clover_two __attribute__((vector_size(16)));

static inline clover_four clover_all(float x) { return (clover_four){x, x, x, x}; }

static inline clover_four clover_either(clover_bits mask, clover_four one, clover_four other) {
    return (clover_four)((mask & (clover_bits)one) | (~mask & (clover_bits)other));
}

/* In each lane `other` unless `one` is larger, which a NaN is not. */
static inline clover_four clover_larger(clover_four one, clover_four other) {
    return clover_either((clover_bits)(one > other), one, other);
}

/* The last two lanes where the first two were. */
static inline clover_four clover_last(clover_four x) {
    clover_two pairs = (clover_two)x;
    return (clover_four)(clover_two){pairs[1], pairs[1]};
}

/* The first two lanes as doubles. */
static inline clover_two clover_doubles(clover_four x) { return (clover_two){(double)x[0], (double)x[1]}; }

static inline clover_four clover_load(const float *at) {
    clover_four found;
    memcpy(&found, at, sizeof found); /* no vector's alignment is asked for */
    return found;
}

/* The next four numbers, or the last 1 to 3.  Not by way of an array: a vector that is read right after its parts
   were written waits for them. */
static inline clover_four clover_load_some(const float *at, ptrdiff_t count) {
    float second, third;
    if (count >= 4) return clover_load(at);
    second = count > 1 ? at[1] : -INFINITY;
    third = count > 2 ? at[2] : -INFINITY;
    return (clover_four){at[0], second, third, -INFINITY};
}

/* Where exp(x) is taken for 0: below -87, soon after which it is no normal float. */
static inline clover_bits clover_vanishes(clover_four x) { return (clover_bits)(x < -87.0f); }

/* exp(x) of x <= 0, NaN of NaN, to about one unit in the last place, as `expf` of Cephes finds it (Moshier, 1989):
   x = n ln 2 + r with |r| <= ln 2 / 2 and ln 2 in two parts, a polynomial of r, and n as the exponent.  This polynomial
   is shorter than that of Cephes: its five coefficients are those of least relative error, 3e-9, rounded one by one. */
static inline clover_four clover_exp(clover_four x) {
    /* A float this large has no room for a fraction, so that adding it rounds.  127 is the exponent of 1. */
    const float whole = 0x1.8p23f + 127.0f;
    clover_four shifted = x * 0x1.715476p0f + whole; /* 1 / ln 2 */
    clover_four n = shifted - whole;
    clover_four r = (x - n * 0x1.63p-1f) - n * -0x1.bd0106p-13f;
    clover_four square = r * r;
    clover_four high = square * 1.3821468e-3f + (r * 8.368663e-3f + 4.1668255e-2f);
    clover_four low = r * 1.6666521e-1f + 4.9999994e-1f;
    clover_four result = ((high * square + low) * square + r) + 1.0f;
    /* The lowest bits of `shifted` are n + 127; the shift puts them where an exponent stands and drops all others. */
    clover_four power = (clover_four)((clover_bits)shifted << 23);
    return (clover_four)(~clover_vanishes(x) & (clover_bits)(result * power));
}

/* The sum of exp(x - most) over the numbers x of a row, with `most` the largest; that of (x - most) exp(x - most) is
   written to `weighted`, unless it is NULL.  Floats are added up as doubles; a class that vanishes adds 0 to both.  NaN
   if one is NaN or inf, or all are -inf.  Inlined wherever it is called: the second sum costs nothing if it is not
   wanted. */
static inline __attribute__((always_inline)) double clover_exp_sum(const float *row, ptrdiff_t count, float most,
                                                                   double *weighted) {
    clover_two total = {0.0, 0.0}, total_last = total, products = total, products_last = total;
    ptrdiff_t i;
    for (i = 0; i < count; i += 4) {
        clover_four less = clover_load_some(row + i, count - i) - most;
        clover_four part = clover_exp(less);
        total += clover_doubles(part);
        total_last += clover_doubles(clover_last(part));
        if (weighted != NULL) {
            less = clover_either(clover_vanishes(less), clover_all(0.0f), less);
            products += clover_doubles(part) * clover_doubles(less);
            products_last += clover_doubles(clover_last(part)) * clover_doubles(clover_last(less));
        }
    }
    if (weighted != NULL) {
        products += products_last;
        *weighted = products[0] + products[1];
    }
    total += total_last;
    return total[0] + total[1];
}

/* The largest number of a row; -inf if there is none but NaN. */
static inline float clover_largest(const float *row, ptrdiff_t count) {
    clover_four a = clover_all(-INFINITY), b = a, c = a, d = a; /* a step of one waits for the step before */
    float one, other;
    ptrdiff_t i = 0;
    for (; i + 16 <= count; i += 16) {
        a = clover_larger(clover_load(row + i), a);
        b = clover_larger(clover_load(row + i + 4), b);
        c = clover_larger(clover_load(row + i + 8), c);
        d = clover_larger(clover_load(row + i + 12), d);
    }
    for (; i < count; i += 4) a = clover_larger(clover_load_some(row + i, count - i), a);
    if (count >= 16) a = clover_larger(clover_larger(a, b), clover_larger(c, d));
    one = a[0] > a[1] ? a[0] : a[1];
    other = a[2] > a[3] ? a[2] : a[3];
    return one > other ? one : other;
}

/* Put `x` among the two largest of each lane. */
static inline void clover_rank(clover_four x, clover_four *most, clover_four *second) {
    clover_bits above = (clover_bits)(x > *most);
    *second = clover_larger(clover_either(above, *most, x), *second);
    *most = clover_either(above, x, *most);
}

/* The two largest numbers of a row, which may be equal; -inf where there is none but NaN. */
static inline void clover_two_largest(const float *row, ptrdiff_t count, float *most, float *second) {
    clover_four a = clover_all(-INFINITY), b = a, a_second = a, b_second = a;
    ptrdiff_t i = 0;
    for (; i + 8 <= count; i += 8) {
        clover_rank(clover_load(row + i), &a, &a_second);
        clover_rank(clover_load(row + i + 4), &b, &b_second);
    }
    for (; i < count; i += 4) clover_rank(clover_load_some(row + i, count - i), &a, &a_second);
    clover_rank(b, &a, &a_second);
    a_second = clover_larger(b_second, a_second);
    b_second = clover_last(a_second); /* now: the last lanes are about to be ranked beside themselves */
    clover_rank(clover_last(a), &a, &a_second);
    a_second = clover_larger(b_second, a_second);
    *most = a[0] > a[1] ? a[0] : a[1];
    *second = a[0] > a[1] ? a[1] : a[0];
    *second = a_second[0] > *second ? a_second[0] : *second;
    *second = a_second[1] > *second ? a_second[1] : *second;
}

#endif
