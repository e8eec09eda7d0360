# What other kernels share of the queueing model.  `active` lists `k` groups: the arrays are read at those places only.

cdef struct Moment:  # what a group's service time says about one time t
    double ahead_s  # t minus the mean service time
    double spread_s  # standard deviation of the service time
    double z  # ahead_s in units of spread_s
    double longer  # P(service > t)
    double gauss  # exp(-z z / 2) / 2

cdef struct Line:  # the requests that wait
    double capacity  # requests/s that all workers serve
    double p_wait  # the probability to wait
    double drain  # the rate (1/s) at which the line drains

cdef Moment moment(double t_s, double service_s, double cv) noexcept nogil
cdef double erlang_c(double servers, double load) noexcept nogil
cdef double mean_field(
    Py_ssize_t k, const int *active, const double *count, const double *service_s, double rate, double gap_s,
    double *share,
) noexcept nogil
cdef double product_form(
    Py_ssize_t k, const int *active, const double *count, const double *service_s, double rate, double gap_s,
    double *share, double *p_wait,
) noexcept nogil
cdef double late(
    Py_ssize_t k, const int *active, const double *count, const double *rate_of, const double *share,
    const Moment *moments, Line line,
) noexcept nogil
