"""Scores of answers: how sure a row of class probabilities, or of logits, is, with no object for a row.

With `m` the largest logit of a row and `S` the sum of `exp(x - m)`, the largest probability is `1 / S` and the entropy
`ln S` less the mean of `x - m`: no probability is stored, and a logarithm is taken once a row.  Sums are doubles, so
that a score is as near as a float can be for any number of classes.  Exponentials are taken four at a time
(`csrc/exp.h`).

A NaN or an infinity among logits makes `S` NaN, and so the score; -inf beside finite logits is a class that is ruled
out.
"""

from cpython.buffer cimport (
    PyBUF_C_CONTIGUOUS,
    PyBUF_FORMAT,
    PyBUF_STRIDES,
    PyBUF_WRITABLE,
    PyBuffer_Release,
    PyObject_GetBuffer,
)
from libc.math cimport NAN, expf, isfinite, log
from libc.stdint cimport uint32_t
from libc.string cimport memcpy

cdef extern from "exp.h" nogil:
    double exp_sum "clover_exp_sum"(const float *row, Py_ssize_t count, float most, double *weighted)
    float largest "clover_largest"(const float *row, Py_ssize_t count)
    void two_largest "clover_two_largest"(const float *row, Py_ssize_t count, float *most, float *second)

cdef enum:
    TOP
    MARGIN
    ENTROPY

cdef dict KINDS = {"top": TOP, "margin": MARGIN, "entropy": ENTROPY}

cdef double LEAST = 1e-12  # a probability that counts in the entropy; what is rounded below 0 has no logarithm


cdef float of_logits(const float *row, Py_ssize_t count, int kind) noexcept nogil:
    """Return the score of a row of logits; NaN if one is NaN or inf, or all are -inf."""
    cdef float most, second
    cdef double total, weighted
    if kind == MARGIN:
        two_largest(row, count, &most, &second)
        return <float>((1.0 - <double>expf(second - most)) / exp_sum(row, count, most, NULL))
    most = largest(row, count)
    if kind == TOP:
        return <float>(1.0 / exp_sum(row, count, most, NULL))
    if count == 1:
        return NAN
    total = exp_sum(row, count, most, &weighted)
    return <float>(1.0 - (log(total) - weighted / total) / log(<double>count))


cdef float of_probabilities(const float *row, Py_ssize_t count, int kind) noexcept nogil:
    """Return the score of a row of probabilities; NaN if one is NaN."""
    cdef float most, second
    cdef double total = 0.0
    cdef Py_ssize_t i
    if kind == ENTROPY:
        if count == 1:
            return NAN
        for i in range(count):
            if not row[i] <= LEAST:  # NaN counts
                total += <double>row[i] * log(row[i])
        return <float>(1.0 + total / log(<double>count))
    for i in range(count):
        if row[i] != row[i]:
            return NAN
    if kind == TOP:
        return largest(row, count)
    two_largest(row, count, &most, &second)
    return most - second


cdef bint finite(const float *row, Py_ssize_t count) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(count):
        if not isfinite(row[i]):
            return False
    return True


cdef int look(object given, Py_buffer *found, char kind, int flags) except -1:
    """Take hold of the buffer of `given`, with `flags`.  Raise ValueError if it is no array of that kind with rows."""
    PyObject_GetBuffer(given, found, PyBUF_FORMAT | flags)
    if found.ndim < 1 or found.format == NULL or found.format[0] != kind or found.format[1] != 0:
        PyBuffer_Release(found)
        raise ValueError("values and scores are float32, slots uint32, with an axis of rows")
    return 0


cdef class Scores:
    """Scores of a kind, "top", "margin" or "entropy": of logits, or of probabilities with errors up to `rounding`."""

    cdef int _kind
    cdef bint _logits
    cdef double _low
    cdef double _high

    def __cinit__(self, str kind, bint logits, double rounding):
        if kind not in KINDS:
            raise ValueError(f"there is no score {kind!r}")
        self._kind = KINDS[kind]
        self._logits = logits
        self._low = -rounding
        self._high = 1.0 + rounding

    def score(self, values, into, slots=None):
        """Write the score of each row of `values` [rows, ...] to `into` [rows], or to these slots of it.

        Return the first row that holds no probabilities though its values are finite, -1 if there is none: its score is
        outside 0..1.  A row with such a score whose values are not finite scores NaN.  Values and scores are float32,
        `slots` uint32 [rows], values and slots in C order.  Raises IndexError, and writes nothing, if there is no such
        slot; ValueError for other arrays, and for rows of no number, or of one if the score is a margin.
        """
        cdef Py_buffer rows, scores, places
        look(values, &rows, c"f", PyBUF_C_CONTIGUOUS)
        try:
            look(into, &scores, c"f", PyBUF_STRIDES | PyBUF_WRITABLE)
            try:
                if slots is None:
                    return self._fill(&rows, &scores, NULL)
                look(slots, &places, c"I", PyBUF_C_CONTIGUOUS)
                try:
                    return self._fill(&rows, &scores, &places)
                finally:
                    PyBuffer_Release(&places)
            finally:
                PyBuffer_Release(&scores)
        finally:
            PyBuffer_Release(&rows)

    cdef Py_ssize_t _fill(self, Py_buffer *rows, Py_buffer *scores, Py_buffer *places) except -2:
        cdef const float *row = <const float *>rows.buf
        cdef char *to = <char *>scores.buf
        cdef const uint32_t *slots = NULL
        cdef float found
        cdef Py_ssize_t count = 1, wrong = -1, at
        cdef Py_buffer *given
        cdef int axis
        for axis in range(1, rows.ndim):
            count *= rows.shape[axis]
        given = scores if places == NULL else places
        if scores.ndim != 1 or given.ndim != 1 or given.shape[0] != rows.shape[0]:
            raise ValueError(f"{rows.shape[0]} rows have as many scores")
        if count < (2 if self._kind == MARGIN else 1):
            raise ValueError(f"a score needs a number a row, a margin two: there are {count}")
        if places != NULL:
            slots = <const uint32_t *>places.buf
            for at in range(rows.shape[0]):
                if slots[at] >= scores.shape[0]:
                    raise IndexError(f"slot {slots[at]} is outside 0..{scores.shape[0] - 1}")
        for at in range(rows.shape[0]):
            if self._logits:
                found = of_logits(row, count, self._kind)
            else:
                found = of_probabilities(row, count, self._kind)
                if not self._low <= found <= self._high:
                    if not finite(row, count):
                        found = NAN
                    elif wrong < 0:
                        wrong = at
            # A slab has scores beside other words of its slots.
            memcpy(to + (at if slots == NULL else <Py_ssize_t>slots[at]) * scores.strides[0], &found, sizeof(float))
            row += count
        return wrong
