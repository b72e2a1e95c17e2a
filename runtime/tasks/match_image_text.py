"""match-image-text: which of several texts says best what a picture shows."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from isoformer.runtime import images
from isoformer.runtime.errors import InputError
from isoformer.runtime.package import MODEL
from isoformer.runtime.session import Graphs
from isoformer.runtime.tasks import classify
from isoformer.runtime.text import text_encoder

EXAMPLE = 'picture.png "some text" "another"'
TEXT = "text_model"
PICTURES = {".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff"}


def run(
    graphs: Graphs,
    texts: Sequence[str],
    *,
    truncate: bool = False,
    progress: Callable[[int], None] = lambda _done: None,
) -> list[dict[str, Any]]:
    """[{"input": file, "label": the best text, "scores": {text: share}}, …], one a picture file; shares sum to 1.

    texts: an input that is a file is a picture, the others are texts; truncate cuts those that are too long.
    Raises InputError without a picture or a text, and for a file that cannot be read.
    """
    files = [text for text in texts if Path(text).is_file()]
    said = list(dict.fromkeys(text for text in texts if not Path(text).is_file()))
    for text in said:
        if Path(text).suffix.lower() in PICTURES:
            raise InputError(f"{text} is not a file; give picture files and texts")
    if not files or not said:
        raise InputError(f"there is no {'text' if files else 'picture file'}; give picture files and texts")
    encoder = text_encoder(graphs[TEXT], truncate=truncate)
    tokens = encoder.inputs(encoder.encode(said))
    progress(len(texts) - len(files))
    results = []
    for start in range(0, len(files), images.BATCH_SIZE):
        chosen = files[start : start + images.BATCH_SIZE]
        values = np.concatenate([images.pixel_values(graphs[images.PREPROCESSOR], file) for file in chosen])
        rows = graphs[MODEL].run(tokens | {"pixel_values": values}, ["logits_per_image"])["logits_per_image"]
        for file, logits in zip(chosen, rows, strict=True):
            results.append(classify.result(file, logits.astype(np.float64), said, "single_label"))
        progress(len(chosen))
    return results


show = partial(classify.show, what="picture")
