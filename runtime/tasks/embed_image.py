"""embed-image: one vector a picture; pictures of like things have vectors that point alike."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from isoformer.runtime import images
from isoformer.runtime.package import MODEL
from isoformer.runtime.session import Graphs
from isoformer.runtime.tasks import embed

EXAMPLE = "one.png other.png"


def run(
    graphs: Graphs,
    texts: Sequence[str],
    *,
    truncate: bool = False,  # noqa: ARG001  pictures have no length
    progress: Callable[[int], None] = lambda _done: None,
) -> list[dict[str, Any]]:
    """[{"input": file, "embedding": [float, …]}, …] of picture files.

    Raises InputError for a file that cannot be read.
    """
    rows = images.run_batches(graphs, MODEL, texts, "image_embeds", progress=progress)
    return [{"input": text, "embedding": row.tolist()} for text, row in zip(texts, rows, strict=True)]


show = partial(embed.show, what="picture")
