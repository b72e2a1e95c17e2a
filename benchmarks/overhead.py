"""What Session.run adds to a bare InferenceSession.run: checks, defaults, outputs by name.

    python -m benchmarks.overhead PACKAGE

Calls of either kind alternate on one ONNX Runtime session, so both see the same machine. Prints one
JSON object a shape: medians in ms, what is added in µs, and as a share of the bare call.
"""

import json
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np

from isoformer.runtime import Session
from isoformer.runtime.cases import BATCH_AXIS, sample

CALLS = 1000


def main() -> None:
    session = Session(Path(sys.argv[1]))
    bare = session.inference
    names = [spec.name for spec in session.signature.outputs]
    for batch, length in ((1, 16), (1, 128)):
        sizes = dict.fromkeys(session.signature.axes, length) | {BATCH_AXIS: batch}
        inputs = sample(session.signature, sizes, "none", np.random.default_rng(0))
        times: dict[str, list[float]] = {"session": [], "bare": []}
        calls = [("session", partial(session.run, inputs)), ("bare", partial(bare.run, names, inputs))]
        for _ in range(CALLS):
            calls.reverse()
            for kind, call in calls:
                start = time.perf_counter()
                call()
                times[kind].append(time.perf_counter() - start)
        medians = {kind: float(np.median(values)) for kind, values in times.items()}
        added = medians["session"] - medians["bare"]
        row = {"batch": batch, "length": length, **{f"{kind}_ms": round(v * 1e3, 4) for kind, v in medians.items()}}
        print(json.dumps(row | {"added_us": round(added * 1e6, 1), "added_share": round(added / medians["bare"], 4)}))


if __name__ == "__main__":
    main()
