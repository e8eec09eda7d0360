"""What a connection does for every answer and every request, without the event loop: send at once, copy what was read.

An event loop's transport keeps what it is given and writes it at the end of its turn, from a list of its own.  A socket
takes nearly every answer whole at once, so it is asked first; what it does not take is the transport's.
"""

from cpython.bytearray cimport PyByteArray_AS_STRING, PyByteArray_GET_SIZE
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE

cdef extern from "<sys/socket.h>" nogil:
    ssize_t c_send "send"(int fd, const void *data, size_t size, int flags)
    int MSG_DONTWAIT
    int MSG_NOSIGNAL


cpdef Py_ssize_t send(int fd, bytes data) except -1:
    """How many bytes of `data` the socket `fd` took now: 0 where it takes none, whatever the reason; a transport that is
    asked next finds that out for itself."""
    cdef ssize_t sent = c_send(fd, PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data), MSG_DONTWAIT | MSG_NOSIGNAL)
    return sent if sent > 0 else 0


cpdef bytes cut(bytearray page, Py_ssize_t size):
    """The first `size` bytes of `page`; IndexError where it has fewer."""
    if not 0 <= size <= PyByteArray_GET_SIZE(page):
        raise IndexError(f"{size} bytes of {PyByteArray_GET_SIZE(page)}")
    return PyBytes_FromStringAndSize(PyByteArray_AS_STRING(page), size)
