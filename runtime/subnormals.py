"""Subnormal floats as zero, for the time that ONNX Runtime computes in the caller's own thread.

A masked key gets from ONNX Runtime's softmax a weight of about 1e-39, not 0, and processors multiply such
numbers up to a hundred times slower than others. The session option `set_denormal_as_zero` mends it in the
session's own threads. The thread that calls does a part of the work too, and gets here the same mode, and its own back.
"""

import ctypes
import platform
import sys
from typing import Any

_FLUSH = 0x8040  # of the x86 control register MXCSR: results to zero (bit 15), operands to zero (bit 6)
_Environment = ctypes.c_uint32 * 8  # fenv_t
_MXCSR = 7  # its word that holds the register, behind the state of the older unit


def _library() -> ctypes.PyDLL | None:
    """libm where fegetenv and fesetenv are known to handle MXCSR at that place: Linux on x86-64."""
    if not sys.platform.startswith("linux") or platform.machine() != "x86_64":
        return None
    try:
        # Not CDLL, which lets go of the interpreter's lock for calls of a few nanoseconds.
        return ctypes.PyDLL("libm.so.6")
    except OSError:
        return None


_libm = _library()


class flushed:  # noqa: N801 - reads as a function, like contextlib's
    """Within it this thread takes subnormal numbers for zero. Does nothing on other systems than Linux on x86-64.

    A plain class and one buffer: after a run every line of this is cold in the processor's caches, and what it
    touches is what it costs.
    """

    __slots__ = ("_before", "_environment", "_libm")

    def __enter__(self) -> None:
        libm = self._libm = _libm
        if libm is not None:
            environment: Any = _Environment()
            libm.fegetenv(environment)
            self._environment, self._before = environment, environment[_MXCSR]
            environment[_MXCSR] |= _FLUSH
            libm.fesetenv(environment)

    def __exit__(self, *_: object) -> None:
        if self._libm is not None:
            self._environment[_MXCSR] = self._before
            self._libm.fesetenv(self._environment)
