"""classify-image: which of the model's classes a picture belongs to."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from isoformer.runtime import images
from isoformer.runtime.package import MODEL
from isoformer.runtime.session import Graphs
from isoformer.runtime.tasks import classify

EXAMPLE = "picture.png"


def run(
    graphs: Graphs,
    texts: Sequence[str],
    *,
    truncate: bool = False,  # noqa: ARG001  pictures have no length
    progress: Callable[[int], None] = lambda _done: None,
) -> list[dict[str, Any]]:
    """[{"input": file, "label": the best, "scores": {label: score}}, …] of picture files, as `classify` has them.

    Raises InputError for a file that cannot be read.
    """
    task = graphs.package.task
    rows = images.run_batches(graphs, MODEL, texts, "logits", progress=progress)
    return [
        classify.result(text, logits.astype(np.float64), task["labels"], task["problem"])
        for text, logits in zip(texts, rows, strict=True)
    ]


show = partial(classify.show, what="picture")
