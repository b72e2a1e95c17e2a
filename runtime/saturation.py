"""Whether products of 8 bits are right on this processor.

x86 processors without VNNI add the products of unsigned and signed bytes in pairs, in 16 bits: above 32767 the sum
stays there. ONNX Runtime has slower kernels that are exact there too, and takes them only where its option says so.
"""

import functools
from typing import Any

import numpy as np

from isoformer.runtime.subnormals import flushed

# ONNX Runtime's option for exact products: signed weights become unsigned. With VNNI nothing needs it, and
# it costs the faster kernels: docs/decisions/variants.md.
EXACT = "session.x64quantprecision"

# y = MatMulInteger(a, b), a uint8 (2, 4), b int8 (4, 1), opset 10, as onnx writes it.
_PRODUCT = (
    b'\x08\x08:\\\n\x18\n\x01a\n\x01b\x12\x01y"\rMatMulInteger\x12\x01g'
    b"Z\x13\n\x01a\x12\x0e\n\x0c\x08\x02\x12\x08\n\x02\x08\x02\n\x02\x08\x04"
    b"Z\x13\n\x01b\x12\x0e\n\x0c\x08\x03\x12\x08\n\x02\x08\x04\n\x02\x08\x01"
    b"b\x13\n\x01y\x12\x0e\n\x0c\x08\x06\x12\x08\n\x02\x08\x02\n\x02\x08\x01B\x04\n\x00\x10\n"
)


@functools.cache  # the processor stays the same
def products_saturate(ort: Any) -> bool:
    """Whether this onnxruntime's default kernels saturate here, found by the largest product that there is.

    The processor's name or flags would have to be read differently on every system, and say nothing of the kernels.
    """
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    a, b = np.full((2, 4), 255, np.uint8), np.full((4, 1), 127, np.int8)
    with flushed():
        session = ort.InferenceSession(_PRODUCT, options, providers=["CPUExecutionProvider"])
        (found,) = session.run(None, {"a": a, "b": b})
    return bool((found != 4 * 255 * 127).any())
