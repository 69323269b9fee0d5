"""The UTF-8 of a str without a copy: CPython keeps it with the str, for ASCII it is the str itself."""

import ctypes

_utf8 = ctypes.pythonapi.PyUnicode_AsUTF8AndSize
_utf8.restype = ctypes.c_void_p
_utf8.argtypes = [ctypes.py_object, ctypes.POINTER(ctypes.c_ssize_t)]


def utf8_of(text: str) -> tuple[int, int]:
    """Address and length in bytes of the UTF-8 of `text`, good for as long as `text` lives.

    A lone surrogate is a `UnicodeEncodeError`.
    """
    n_bytes = ctypes.c_ssize_t()
    address = _utf8(text, ctypes.byref(n_bytes))
    return address, n_bytes.value
