"""A request's whole stay in the batcher, called as the router calls it: from C.  Built by `bench.kernels` when asked."""

from libc.stdint cimport int64_t

from clover._native.batcher cimport Batcher


def stay(Batcher queue, object out, list client, int64_t first, Py_ssize_t count, Py_ssize_t max_batch):
    """`count` requests from number `first` on, of these clients by slot: pushed, dispatched in batches of `max_batch`,
    and their worker's credit returned."""
    cdef Py_ssize_t batch, row, slots = len(client)
    cdef int64_t at = first, slot
    cdef tuple formed
    cdef object worker
    for batch in range(count // max_batch):
        for row in range(max_batch):
            slot = at % slots
            queue.push(0, slot, <int64_t>1 << 60, at, 0, <int64_t>client[slot])
            at += 1
        formed = queue.dispatch(0, out)
        worker = formed[0]
        queue.credit(worker)
