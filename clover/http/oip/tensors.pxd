cimport cython

@cython.locals(text=bytes)
cpdef bytes numbers_to_json(str datatype, object values)
cpdef bytes numbers_to_binary(object values)
