"""Subnormal floats as zero, for the time that ONNX Runtime computes in the caller's own thread.

A masked key gets from ONNX Runtime's softmax a weight of about 1e-39, not 0, and processors multiply such
numbers up to a hundred times slower than others. The session option `set_denormal_as_zero` mends it in the
session's own threads. The thread that calls does a part of the work too, and gets here the same mode, and its own back.
"""

import ctypes
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_FLUSH = 0x8040  # of the x86 control register MXCSR: results to zero (bit 15), operands to zero (bit 6)
_MXCSR = 28  # where fenv_t holds it, behind the state of the older unit


def _library() -> ctypes.CDLL | None:
    """libm where fegetenv and fesetenv are known to handle MXCSR at that place: Linux on x86-64."""
    if not sys.platform.startswith("linux") or platform.machine() != "x86_64":
        return None
    try:
        library = ctypes.CDLL("libm.so.6")
    except OSError:
        return None
    library.fegetenv.argtypes = library.fesetenv.argtypes = [ctypes.c_void_p]
    return library


_libm = _library()


@contextmanager
def flushed() -> Iterator[None]:
    """Within it this thread takes subnormal numbers for zero. Does nothing on other systems than Linux on x86-64."""
    if _libm is None:
        yield
        return
    before, within = ctypes.create_string_buffer(32), ctypes.create_string_buffer(32)
    _libm.fegetenv(before)
    within.raw = before.raw
    register = ctypes.c_uint32.from_buffer(within, _MXCSR)
    register.value |= _FLUSH
    _libm.fesetenv(within)
    try:
        yield
    finally:
        _libm.fesetenv(before)
