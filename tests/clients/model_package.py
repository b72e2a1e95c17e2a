"""A model package in ONNX Runtime: {package, inputs, output} on standard input, the output as a list."""

import json
import sys

import numpy as np
import onnxruntime


def main() -> None:
    asked = json.load(sys.stdin)
    context = onnxruntime.ModelPackageContext(asked["package"])  # pyright: ignore[reportAttributeAccessIssue]
    options = onnxruntime.ModelPackageOptions(onnxruntime.SessionOptions())  # pyright: ignore[reportAttributeAccessIssue]
    session = context.select_component("model", options).create_session()
    inputs = {name: np.array(values) for name, values in asked["inputs"].items()}
    print(json.dumps(session.run([asked["output"]], inputs)[0].tolist()))


if __name__ == "__main__":
    main()
