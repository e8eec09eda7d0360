"""How long requests wait, and which workers serve them, if they queue in one line for workers of unequal speed.

**The system.**  Requests arrive as a Poisson stream of `rate` a second and form one FIFO line; the first goes to any
idle worker, each as likely as another.  Workers come in groups: `counts` of group k, service time of mean `service_s`
and variation `cv`.  mu = sum n_k / S_k is what they serve at most, rho = rate / mu; only rho < 1 is stable.  A request
that finds all busy is served by the first worker to finish, of group k with probability s1_k = (n_k / S_k) / mu.  One
that finds an idle worker is served by group k with probability s0_k, and that is where the models differ.

**Mean field** (`mf`).  An idle worker is found by requests at some rate 1/y, and serves in a cycle of y seconds idle
and S_k seconds busy, so h(y) = sum n_k / (y + S_k) must be the arrival rate.  1 / h is concave, increases, and is a
straight line where all workers are alike, so that Newton's method on it, and Halley's where that steps further, needs
few steps from anywhere.  Shares are n_k / (y + S_k) / rate, whether a request waits or not; the probability to wait is
that of M/M/c at the same rho.  The cost does not depend on the number of workers.

**Product form** (`pf`): exact for exponential service.  With loads b_i = rate S_i, e_j their elementary symmetric
polynomials and c workers, j of them are busy with weight e_j (c - j)! / c!, and all of them with a factor 1 / (1 - rho)
more for the line.  Factorials and polynomials need not be evaluated at all.  Because (c - j)! is the integral of
exp(-u) u^(c - j), and sum e_j u^(c - j) is the product of all (u + b_i),

    sum_j e_j (c - j)!                         =  integral of g(u),             g(u) = exp(-u) prod_i (u + b_i)
    sum_(j < c) e_j(without one k) (c - j - 1)!  =  integral of g(u) / (u + b_k),  u from 0 to infinity,

and g is log-concave with its top where sum n_k / (u + b_k) = 1: at u = rate y, y the root of the mean field, which is
the saddle point of the product form.  Gauss-Legendre quadrature between the points where g has fallen by exp(-38)
gives all shares to rounding, every term positive, at a cost that does not depend on the number of workers either.

**The tail.**  Given that a request waits, its waiting time is taken as exponential with the rate at which the line
drains, th = 2 (mu - rate) / (1 + sum s1_k cv_k^2); service is normal.  With z = (t - S) / s and u = z - th s, s = cv S,
P(wait + service > t) = Q(z) + exp((u^2 - z^2) / 2) Phi(u).  Where u < 0 both factors leave the range of a double, so
the second term is then written exp(-z^2 / 2) / 2 erfcx(-u / sqrt 2), which cannot overflow.
"""

import numpy as np

from libc.math cimport INFINITY, NAN, cos, erfc, exp, isfinite, log, sqrt

cdef extern from "erlang.h" nogil:
    double clover_erlang_c(double servers, double load)

cdef enum:
    NODES = 48

cdef double DEPTH = 38.0  # quadrature ends where the integrand has fallen by this many powers of e
cdef double NOTHING = 45.0  # exp(-45) is no probability worth the time
cdef double ROOT_HALF = sqrt(0.5)
cdef double ROOT_PI = sqrt(3.141592653589793)

cdef double[NODES] node
cdef double[NODES] weight


cdef void _legendre() noexcept:
    """Return nodes and weights on -1..1, by Newton's method on the Legendre polynomial."""
    cdef int i, j, step
    cdef double x, slope, this, last, before
    for i in range(NODES):
        x = -cos(3.141592653589793 * (i + 0.75) / (NODES + 0.5))
        slope = 1.0
        for step in range(8):
            this, last = x, 1.0
            for j in range(2, NODES + 1):
                before = last
                last = this
                this = ((2 * j - 1) * x * last - (j - 1) * before) / j
            slope = NODES * (x * this - last) / (x * x - 1.0)
            x -= this / slope
        node[i] = x
        weight[i] = 2.0 / ((1.0 - x * x) * slope * slope)


_legendre()


# --- the normal distribution ------------------------------------------------------------------------------------------

cdef inline double erfcx(double x) noexcept nogil:
    """Return exp(x x) erfc(x) for x >= 0."""
    cdef double r
    if x < 25.0:
        return exp(x * x) * erfc(x)
    r = 0.5 / (x * x)
    return (1.0 - r * (1.0 - 3.0 * r * (1.0 - 5.0 * r * (1.0 - 7.0 * r * (1.0 - 9.0 * r))))) / (x * ROOT_PI)


cdef Moment moment(double t_s, double service_s, double cv) noexcept nogil:
    """Return what a group's service time says about the time t."""
    cdef Moment at
    at.ahead_s = t_s - service_s
    at.spread_s = cv * service_s
    if at.spread_s > 0.0:
        at.z = at.ahead_s / at.spread_s
        at.longer = 0.5 * erfc(at.z * ROOT_HALF)
        at.gauss = 0.5 * exp(-0.5 * at.z * at.z)
    else:
        at.z = 0.0
        at.longer = 1.0 if at.ahead_s < 0.0 else 0.0
        at.gauss = 0.0
    return at


cdef inline double waited(const Moment *at, double drain) noexcept nogil:
    """Return P(wait + service > t) of a request that waits, if the line drains at `drain` a second."""
    cdef double fall, u, decay
    if at.spread_s > 0.0:
        fall = drain * at.spread_s
        u = at.z - fall
        if u >= 0.0:
            decay = drain * (at.ahead_s - 0.5 * fall * at.spread_s)
            if decay > NOTHING:
                return at.longer
            if u >= 8.5:  # Phi(u) is 1
                return at.longer + exp(-decay)
            return at.longer + exp(-decay) * (1.0 - 0.5 * erfc(u * ROOT_HALF))
        if at.gauss == 0.0:
            return at.longer
        return at.longer + at.gauss * erfcx(-u * ROOT_HALF)
    if at.ahead_s < 0.0:
        return 1.0
    return exp(-drain * at.ahead_s)


# --- the model --------------------------------------------------------------------------------------------------------

cdef double erlang_c(double servers, double load) noexcept nogil:
    """Return the probability to wait in M/M/c: c = `servers` (whole, 1 or more), `load` = rate x service time < c."""
    return clover_erlang_c(servers, load)


cdef double mean_field(
    Py_ssize_t k, const int *active, const double *count, const double *service_s, double rate, double gap_s,
    double *share,
) noexcept nogil:
    """Find the shares of the mean field, and return the mean idle time y of a worker between requests.

    `gap_s` is a guess of y, 0 if there is none.  The rate must be below what the workers serve.
    """
    cdef double served, slope, bend, one, part, excess
    cdef Py_ssize_t i
    cdef int j, step
    for step in range(100):
        served = slope = bend = 0.0
        for i in range(k):
            j = active[i]
            one = 1.0 / (service_s[j] + gap_s)
            part = count[j] * one
            served += part
            part *= one
            slope += part
            bend += part * one
        excess = served - rate
        one = rate * (slope * slope)
        part = excess * (bend * served - slope * slope)
        if part < 0.5 * one:
            gap_s += served * excess * slope / (one - part)
        else:
            gap_s += served * excess / (rate * slope)
        if gap_s < 0.0:
            gap_s = 0.0
        if -1e-5 * rate <= excess <= 1e-5 * rate:  # the step just made has taken that to the third power
            break
    served = 0.0
    for i in range(k):
        j = active[i]
        share[j] = count[j] / (service_s[j] + gap_s)
        served += share[j]
    one = 1.0 / served
    for i in range(k):
        share[active[i]] *= one
    return gap_s


cdef inline double _height(
    double u, Py_ssize_t k, const int *active, const double *count, const double *service_s, double rate
) noexcept nogil:
    """Return log g(u)."""
    cdef double total = -u
    cdef Py_ssize_t i
    for i in range(k):
        total += count[active[i]] * log(u + rate * service_s[active[i]])
    return total


cdef double product_form(
    Py_ssize_t k, const int *active, const double *count, const double *service_s, double rate, double gap_s,
    double *share, double *p_wait,
) noexcept nogil:
    """Find the shares of requests that find a worker idle, and the probability to wait; return y as `mean_field`."""
    cdef double top, peak, narrow = 0.0, capacity = 0.0, low, high, reach, half, middle, u, mass, area = 0.0, full, rho
    cdef Py_ssize_t i, q
    cdef int j
    gap_s = mean_field(k, active, count, service_s, rate, gap_s, share)
    top = rate * gap_s
    peak = _height(top, k, active, count, service_s, rate)
    for i in range(k):
        j = active[i]
        share[j] = 0.0
        u = top + rate * service_s[j]
        narrow += count[j] / (u * u)
        capacity += count[j] / service_s[j]
    reach = 9.0 / sqrt(narrow)  # exp(-40) for a Gaussian, and g falls faster than one on the left
    low = top - reach if top > reach else 0.0
    while _height(top + reach, k, active, count, service_s, rate) > peak - DEPTH:
        reach *= 1.25
    high = top + reach
    half = 0.5 * (high - low)
    middle = 0.5 * (high + low)
    for q in range(NODES):
        u = middle + half * node[q]
        mass = weight[q] * half * exp(_height(u, k, active, count, service_s, rate) - peak)
        area += mass
        for i in range(k):
            j = active[i]
            share[j] += mass / (u + rate * service_s[j])
    full = exp(_height(0.0, k, active, count, service_s, rate) - peak)
    rho = rate / capacity
    p_wait[0] = full / ((1.0 - rho) * area + rho * full)
    area = 0.0
    for i in range(k):
        j = active[i]
        share[j] *= count[j]
        area += share[j]
    area = 1.0 / area
    for i in range(k):
        share[active[i]] *= area
    return gap_s


cdef double late(
    Py_ssize_t k, const int *active, const double *count, const double *rate_of, const double *share,
    const Moment *moments, Line line,
) noexcept nogil:
    """Return P(latency > t), with the t of `moments`; `share` is of those that do not wait, `rate_of` 1 / service time.
    """
    cdef double idle = 0.0, busy = 0.0
    cdef Py_ssize_t i
    cdef int j
    if line.p_wait < 1e-15:
        for i in range(k):
            j = active[i]
            idle += share[j] * moments[j].longer
        return idle
    for i in range(k):
        j = active[i]
        idle += share[j] * moments[j].longer
        busy += count[j] * rate_of[j] * waited(&moments[j], line.drain)
    return (1.0 - line.p_wait) * idle + line.p_wait * (busy / line.capacity)


# --- what Python may ask ----------------------------------------------------------------------------------------------

cdef class _System:
    """One configuration, solved."""

    cdef Py_ssize_t k
    cdef int[::1] active
    cdef double[::1] count, service_s, cv, rate_of, share
    cdef Moment[64] few
    cdef object owned
    cdef Moment *moments
    cdef double rate, capacity, p_wait, drain
    cdef bint stable
    cdef bint product

    def __init__(self, service_s, cv, counts, rate, model):
        cdef Py_ssize_t size, i
        cdef double variation = 0.0, part
        if model not in ("pf", "mf"):
            raise ValueError(f"model must be 'pf' or 'mf', not {model!r}")
        self.service_s = _column("service_s", service_s, None)
        size = self.service_s.shape[0]
        self.cv = _column("cv", cv, size)
        whole = np.asarray(counts)
        if whole.size and whole.dtype.kind not in "iu":
            raise ValueError("counts must be whole numbers")
        self.count = _column("counts", whole, size)
        self.rate = rate
        if not (self.rate > 0.0 and isfinite(self.rate)):
            raise ValueError(f"rate must be positive and finite, not {rate}")
        self.product = model == "pf"
        self.rate_of = np.empty(size)
        self.share = np.zeros(size)
        self.active = np.empty(size, np.intc)
        self.moments = self.few
        if size > 64:
            self.owned = np.empty(size * sizeof(Moment), np.uint8)
            self.moments = <Moment *><size_t>self.owned.ctypes.data
        self.k = 0
        self.capacity = 0.0
        for i in range(size):
            if not self.service_s[i] > 0.0:
                raise ValueError("service_s must be positive")
            if self.cv[i] < 0.0 or self.count[i] < 0.0:
                raise ValueError("cv and counts must not be negative")
            self.rate_of[i] = 1.0 / self.service_s[i]
            if self.count[i] > 0.0:
                self.active[self.k] = <int>i
                self.k += 1
                part = self.count[i] * self.rate_of[i]
                self.capacity += part
                variation += part * (self.cv[i] * self.cv[i])
        self.stable = self.rate < self.capacity
        if self.stable:
            self.drain = 2.0 * (self.capacity - self.rate) / (1.0 + variation / self.capacity)
            with nogil:
                self._solve()

    cdef void _solve(self) noexcept nogil:
        cdef double servers = 0.0
        cdef Py_ssize_t i
        if self.product:
            product_form(
                self.k, &self.active[0], &self.count[0], &self.service_s[0], self.rate, 0.0, &self.share[0],
                &self.p_wait,
            )
        else:
            mean_field(self.k, &self.active[0], &self.count[0], &self.service_s[0], self.rate, 0.0, &self.share[0])
            for i in range(self.k):
                servers += self.count[self.active[i]]
            self.p_wait = erlang_c(servers, servers * (self.rate / self.capacity))

    cdef double _tail(self, double t_s) noexcept nogil:
        cdef Py_ssize_t i
        cdef int j
        for i in range(self.k):
            j = self.active[i]
            self.moments[j] = moment(t_s, self.service_s[j], self.cv[j])
        return late(
            self.k, &self.active[0], &self.count[0], &self.rate_of[0], &self.share[0], self.moments,
            Line(self.capacity, self.p_wait, self.drain),
        )

    cdef double _quantile(self, double miss) noexcept nogil:
        """Return the least t >= 0 with P(latency > t) <= `miss`, to rounding."""
        cdef double low = 0.0, high = 0.0, middle, one
        cdef Py_ssize_t i
        if self._tail(0.0) <= miss:
            return 0.0
        for i in range(self.k):
            one = self.service_s[self.active[i]] * (1.0 + 8.0 * self.cv[self.active[i]])
            if one > high:
                high = one
        while self._tail(high) > miss:
            low = high
            high *= 2.0
        while high - low > 1e-14 * high:
            middle = 0.5 * (low + high)
            if middle <= low or middle >= high:
                break
            if self._tail(middle) > miss:
                low = middle
            else:
                high = middle
        return high


def _column(name, values, size):
    """Return `values` as a float64 array of finite numbers, one a group."""
    column = np.ascontiguousarray(values, dtype=np.float64)
    if column.ndim != 1 or (size is not None and column.shape[0] != size):
        raise ValueError(f"{name} must be one number a group")
    if not np.isfinite(column).all():
        raise ValueError(f"{name} must be finite")
    return column


def evaluate(service_s, cv, energy_j, accuracy, counts, rate, model, quantile):
    """Return (stable, shares, energy_j, accuracy, p95_s, p_wait) of `counts` workers in each group.

    `energy_j` and `accuracy` are means over requests, without idle power; `p95_s` is the `quantile` of the latency.
    Where the workers cannot keep up: False, NaN for what then means nothing, an infinite latency, and P(wait) = 1.
    """
    cdef _System system = _System(service_s, cv, counts, rate, model)
    cdef double[::1] joules = _column("energy_j", energy_j, system.service_s.shape[0])
    cdef double[::1] quality = _column("accuracy", accuracy, system.service_s.shape[0])
    cdef double miss = 1.0 - quantile, energy = 0.0, right = 0.0, p95_s
    cdef Py_ssize_t i
    cdef int j
    if not 0.0 < miss < 1.0:
        raise ValueError(f"quantile must be between 0 and 1, not {quantile}")
    if not system.stable:
        return False, np.full(system.service_s.shape[0], NAN), NAN, NAN, INFINITY, 1.0
    with nogil:
        p95_s = system._quantile(miss)
        for i in range(system.k):
            j = system.active[i]
            if system.product:
                system.share[j] = (1.0 - system.p_wait) * system.share[j] + system.p_wait * (
                    system.count[j] * system.rate_of[j] / system.capacity
                )
            energy += system.share[j] * joules[j]
            right += system.share[j] * quality[j]
    return True, np.asarray(system.share), energy, right, p95_s, system.p_wait


def tail(service_s, cv, energy_j, accuracy, counts, rate, model, quantile, t):
    """Return P(latency > t seconds) of the system that `evaluate` describes; 1 if the workers cannot keep up.

    Energy, accuracy and quantile do not matter here: they are taken so that both functions can be given the same.
    """
    cdef _System system = _System(service_s, cv, counts, rate, model)
    cdef double t_s = t
    if not system.stable:
        return 1.0
    return system._tail(t_s)
