cpdef bint ring_bell(int fd) except -1
cpdef int signal(int eventfd) except -1
cpdef int take_events(int epoll) except -1
cpdef int wait(int doorbell, int control, int ended=*) except -1
