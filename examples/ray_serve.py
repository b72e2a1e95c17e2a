"""A package on Ray Serve: more replicas, and more machines, behind one address.

    pip install 'isoformer[cpu,serve]' 'ray[serve]'
    ISOFORMER_PACKAGE=/shared/minilm serve run examples.ray_serve:app

Every replica is what `isoformer serve` runs in one process: a session of its own, its queue, its limits. The package
has to be at the same place on every machine. Routes are those of docs/serving.md.
"""

import os
from typing import Any

from ray import serve  # pyright: ignore[reportMissingImports]

from isoformer.runtime.serve.app import Server, make_app
from isoformer.runtime.session import open_fastest


def build() -> Any:
    """The application of one replica."""
    session = open_fastest(os.environ["ISOFORMER_PACKAGE"], threads=int(os.environ.get("ISOFORMER_THREADS", "1")))
    return make_app(Server(session, session.package.manifest["name"]))


@serve.deployment(
    num_replicas=int(os.environ.get("ISOFORMER_REPLICAS", "2")),
    ray_actor_options={"num_cpus": float(os.environ.get("ISOFORMER_THREADS", "1"))},
    # What a replica holds itself: more than its queue, so that the 429 is its own.
    max_ongoing_requests=100,
)
@serve.ingress(build)
class Replica:
    """One process with the package."""


app = Replica.bind()  # pyright: ignore[reportAttributeAccessIssue]  serve.deployment adds it
