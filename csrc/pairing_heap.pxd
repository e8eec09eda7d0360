"""The pairing heap of a bucket of waiting rows, by (rank, arrival): which row goes next.

The heap lives in the nodes themselves, one node a slot, so it needs no memory of its own, pushes in O(1), and removes
any row, the first or a cancelled one, in amortised O(log n).  The rows of one client arrive in order, and a push is then
one comparison.  (Fredman, Sedgewick, Sleator and Tarjan 1986.)
"""

from libc.stdint cimport int32_t

from clover._native.batcher cimport Node


cdef enum:
    NONE = -1


cdef inline bint before(Node *nodes, int32_t a, int32_t b) noexcept nogil:
    if nodes[a].rank != nodes[b].rank:
        return nodes[a].rank < nodes[b].rank
    return nodes[a].order < nodes[b].order


cdef inline int32_t meld(Node *nodes, int32_t a, int32_t b) noexcept nogil:
    """Join two heaps: the later root becomes the first child of the earlier one."""
    cdef int32_t first
    if before(nodes, b, a):
        a, b = b, a
    first = nodes[a].child
    nodes[b].next = first
    nodes[b].previous = a
    if first != NONE:
        nodes[first].previous = b
    nodes[a].child = b
    return a


cdef inline int32_t meld_siblings(Node *nodes, int32_t first) noexcept nogil:
    """Join a list of siblings, in the two passes that give the pairing heap its amortised bound."""
    cdef int32_t done = NONE  # melded pairs, last first, linked by `next`
    cdef int32_t a = first, b, rest, root
    while a != NONE:
        b = nodes[a].next
        if b == NONE:
            nodes[a].next = done
            done = a
            break
        rest = nodes[b].next
        root = meld(nodes, a, b)
        nodes[root].next = done
        done = root
        a = rest
    root = done
    if root != NONE:
        done = nodes[root].next
        while done != NONE:
            rest = nodes[done].next
            root = meld(nodes, root, done)
            done = rest
    return root
