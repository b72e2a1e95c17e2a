"""What a server counts, for Prometheus."""

from collections.abc import Callable

from isoformer.runtime.extras import library
from isoformer.runtime.generation import Stats

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
REQUESTS = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """A registry of its own, so that several servers may stand in one process."""

    def __init__(self) -> None:
        self._client = client = library("prometheus_client")
        self.registry = registry = client.CollectorRegistry()
        self.requests = client.Counter(
            "isoformer_requests_total", "Requests answered", ["route", "status"], registry=registry
        )
        self.seconds = client.Histogram(
            "isoformer_request_seconds",
            "From a request to its answer's end",
            ["route"],
            buckets=SECONDS,
            registry=registry,
        )
        self.waiting = client.Gauge("isoformer_waiting", "Requests in the queues", registry=registry)
        self.batch = client.Histogram(
            "isoformer_batch_requests", "Requests computed together", buckets=REQUESTS, registry=registry
        )
        self.tokens = client.Counter("isoformer_tokens_total", "Tokens through the graph", registry=registry)
        self.padding = client.Counter(
            "isoformer_padding_total", "Places of padding through the graph", registry=registry
        )
        self.prompt = client.Counter("isoformer_prompt_tokens_total", "Tokens of prompts", registry=registry)
        self.new = client.Counter("isoformer_generated_tokens_total", "Tokens generated", registry=registry)
        self.stopped = client.Counter(
            "isoformer_generations_stopped_total", "Generations whose client went away", registry=registry
        )

    def watch(self, depth: Callable[[], int]) -> None:
        """Asks `depth` for the requests in the queues, when it is asked itself."""
        self.waiting.set_function(depth)

    def batched(self, requests: int, tokens: int, places: int) -> None:
        """One batch was computed."""
        self.batch.observe(requests)
        self.tokens.inc(tokens)
        self.padding.inc(max(0, places - tokens))

    def generated(self, stats: Stats, stopped: bool) -> None:
        """One generation came to its end, or was stopped."""
        self.prompt.inc(stats.prompt_tokens)
        self.new.inc(stats.new_tokens)
        self.stopped.inc(int(stopped))

    def page(self) -> bytes:
        """The text that Prometheus reads."""
        return self._client.generate_latest(self.registry)

    @property
    def content_type(self) -> str:
        return self._client.CONTENT_TYPE_LATEST
