cimport cython

from clover.runtime.memory.bytes_codec cimport cut_rows, split_row

@cython.locals(text=bytes)
cpdef bytes numbers_to_json(str datatype, object values)
cpdef bytes numbers_to_binary(object values)
