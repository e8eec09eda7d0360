/* Erlang's C formula: the probability to wait for one of many equal servers.

   The two lanes of a vector do the same with terms four apart: with many servers this sum is most of what an evaluation
   costs.  GCC and Clang turn the vectors into whatever the machine has, and every lane follows IEEE 754, so that a twin
   without vectors gives the same doubles. */

#ifndef CLOVER_ERLANG_H
#define CLOVER_ERLANG_H

typedef double clover_pair __attribute__((vector_size(16)));

/* The reciprocal of Erlang's B is a sum of products, taken eight at a time and ended where its terms no longer count.
   A sum beyond 1e40 is ended too: the probability is then below 1e-39 / (1 - rho), and that bound is returned.
   `servers` is whole: a factor is exactly 0 where they end, and with it whatever follows. */
static inline double clover_erlang_c(double servers, double load) {
    double rho = load / servers;
    double step = 1.0 / (load > 1e-60 ? load : 1e-60);
    double term = 1.0, total = 1.0;
    clover_pair left = {servers, servers - 4.0};
    while (left[0] > 0.0) {
        clover_pair first = left * step;
        clover_pair third = first - 2.0 * step;
        clover_pair two = first * (first - step);
        clover_pair four = two * (third * (first - 3.0 * step));
        clover_pair sum = (first + two) + (two * third + four);
        total += term * (sum[0] + four[0] * sum[1]);
        term *= four[0] * four[1];
        if (term <= 1e-15 * total || total > 1e40) {
            break;
        }
        left -= 8.0;
    }
    return 1.0 / ((1.0 - rho) * total + rho);
}

#endif
