"""Runs every graph of a folder in the ONNX Runtime that is installed. It needs numpy and onnxruntime alone.

    python benchmarks/masks/ort.py FOLDER

For NAME.onnx and inputs NAME.PROBLEM.npz it writes NAME.PROBLEM.npy, or the reason in NAME.PROBLEM.error.
"""

import sys
from pathlib import Path

import numpy as np


def main() -> None:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what goes wrong is written to a file
    for feeds in sorted(Path(sys.argv[1]).glob("*.npz")):
        model = feeds.with_name(feeds.name.split(".")[0] + ".onnx")
        try:
            session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
            wanted = {value.name for value in session.get_inputs()}
            inputs = {name: array for name, array in np.load(feeds).items() if name in wanted}
            output = np.asarray(session.run(None, inputs)[0])
        except Exception as error:  # ONNX Runtime's exceptions share no narrower base
            feeds.with_suffix(".error").write_text(str(error), encoding="utf-8")
        else:
            np.save(feeds.with_suffix(".npy"), output)


if __name__ == "__main__":
    main()
