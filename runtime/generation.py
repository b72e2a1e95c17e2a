"""Continuing token sequences: greedily, by sampling, by beam search; one batch, one cache, one graph."""

import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from isoformer.runtime import sampling
from isoformer.runtime.binding import Decoder
from isoformer.runtime.errors import InputError
from isoformer.runtime.sampling import Processor
from isoformer.runtime.session import Session

BATCH_SIZE = 8

# Called with the number of a prompt and its new tokens after each of them: whether they are the end.
Ends = Callable[[int, list[int]], bool]


@dataclass(frozen=True)
class Settings:
    """How a sequence goes on.

    max_tokens: new ones, at most; a sequence also ends where the model's positions do.
    temperature: 0 takes the likeliest token (greedy), above 0 draws one. None is 1 where top_k, top_p
    or min_p is given, else 0. See `sampling` for those and repetition_penalty, which also looks at the prompt.
    beams: above 1 searches for the likeliest sequence: the best by sum(log p) / length ** length_penalty.
    early_stopping: end the search with the first `beams` finished sequences, not when none can better them.
    seed: of the draws; None takes another each time. eos: tokens that end a sequence, which keeps the one it met.
    processors: functions (ids so far, logits) -> logits, applied before all others.

    Raises InputError for a value out of range, and for draws in a beam search.
    """

    max_tokens: int = 128
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float = 1.0
    beams: int = 1
    length_penalty: float = 1.0
    early_stopping: bool = False
    seed: int | None = None
    eos: tuple[int, ...] = ()
    processors: tuple[Processor, ...] = ()

    def __post_init__(self) -> None:
        for name, lowest in (("max_tokens", 1), ("top_k", 1), ("beams", 1), ("seed", 0)):
            value = getattr(self, name)
            if value is not None and value < lowest:
                raise InputError(f"{name} is {value}; it must be at least {lowest}")
        for name, good, words in (
            ("temperature", lambda x: 0 <= x < np.inf, "0 (the likeliest token) or a positive number"),
            ("top_p", lambda x: 0 < x <= 1, "above 0 and at most 1"),
            ("min_p", lambda x: 0 <= x <= 1, "from 0 to 1"),
            ("repetition_penalty", lambda x: 0 < x < np.inf, "a positive number (1 is none)"),
            ("length_penalty", np.isfinite, "a finite number"),
        ):
            value = getattr(self, name)
            if value is not None and not good(value):
                raise InputError(f"{name} is {value}; it must be {words}")
        if self.beams > 1 and self.draws:
            raise InputError(f"beams is {self.beams}, and a beam search draws nothing: drop temperature, top_k, …")

    @property
    def draws(self) -> bool:
        """Whether tokens are drawn at random."""
        if self.temperature is None:
            return any(value is not None for value in (self.top_k, self.top_p, self.min_p))
        return self.temperature > 0

    def all_processors(self) -> list[Processor]:
        """The processors in the order in which transformers applies them."""
        result = list(self.processors)
        if self.repetition_penalty != 1:
            result.append(sampling.repetition_penalty(self.repetition_penalty))
        if self.draws:
            if self.temperature is not None:
                result.append(sampling.temperature(self.temperature))
            if self.top_k is not None:
                result.append(sampling.top_k(self.top_k))
            if self.top_p is not None:
                result.append(sampling.top_p(self.top_p))
            if self.min_p is not None:
                result.append(sampling.min_p(self.min_p))
        return result


@dataclass
class Stats:
    """What was computed and how long it took, added up over calls."""

    prompt_tokens: int = 0
    reused_tokens: int = 0  # of the prompt: their keys and values were in the cache
    new_tokens: int = 0
    steps: int = 0  # runs of the graph after the prompt's
    prefill_ms: float = 0.0
    decode_ms: float = 0.0

    def line(self) -> str:
        """For people."""
        each = f"{self.decode_ms / self.steps:.1f} ms a token" if self.steps else "no further step"
        return (
            f"prompt {self.prompt_tokens} tokens ({self.prompt_tokens - self.reused_tokens} computed, "
            f"{self.reused_tokens} reused), new {self.new_tokens} tokens, prefill {self.prefill_ms:.1f} ms, {each}"
        )


def generate(
    session: Session,
    prompts: Sequence[Sequence[int]],
    settings: Settings | None = None,
    *,
    ends: Ends = lambda _number, _new: False,
    stats: Stats | None = None,
    progress: Callable[[int], None] = lambda _done: None,
) -> list[list[int]]:
    """The new tokens of each prompt, in order; prompts of like length share a batch.

    What a prompt gets does not depend on the others: each has draws of its own, of (seed, its number).
    Raises InputError for a prompt that is empty, leaves no room or holds an id out of the vocabulary.
    """
    result: list[list[int]] = [[] for _ in prompts]
    decoder = Decoder(session)
    order = sorted(range(len(prompts)), key=lambda number: len(prompts[number]))
    for start in range(0, len(order), BATCH_SIZE):
        chosen = order[start : start + BATCH_SIZE]
        batch = {number: prompts[number] for number in chosen}
        for number, token in stream(decoder, batch, settings, ends=ends, stats=stats):
            result[number].append(token)
        progress(len(chosen))
    return result


def stream(
    decoder: Decoder,
    prompts: dict[int, Sequence[int]],
    settings: Settings | None = None,
    *,
    ends: Ends = lambda _number, _new: False,
    stats: Stats | None = None,
) -> Iterator[tuple[int, int]]:
    """(number, token) as tokens come, of one batch of numbered prompts; a beam search's come at its end.

    decoder: what it holds of an earlier prompt that this one begins with is not computed again. A
    sequence that has ended leaves the batch. Raises as `generate` does.
    """
    settings, stats = settings or Settings(), stats or Stats()
    if settings.beams > 1:
        for number, prompt in prompts.items():
            for token in _beam_search(decoder, prompt, settings, lambda new, n=number: ends(n, new), stats):
                yield number, token
        return
    processors = settings.all_processors()
    seed = secrets.randbits(64) if settings.seed is None else settings.seed
    draws = {number: np.random.default_rng([seed, number]) for number in prompts}
    new: dict[int, list[int]] = {number: [] for number in prompts}
    active = list(prompts)
    logits = _prefill(decoder, list(prompts.values()), stats)
    while active:
        kept = []
        for row, number in enumerate(active):
            scores = sampling.apply(processors, decoder.tokens[row], logits[row].astype(np.float64))
            token = sampling.draw(scores, draws[number]) if settings.draws else int(scores.argmax())
            new[number].append(token)
            stats.new_tokens += 1
            full = len(new[number]) >= _room(decoder, prompts[number], settings)
            if not full and token not in settings.eos and not ends(number, new[number]):
                kept.append(row)
            yield number, token
        active = [active[row] for row in kept]
        if active:
            decoder.take(kept)
            logits = _step(decoder, [new[number][-1] for number in active], stats)


def _beam_search(
    decoder: Decoder, prompt: Sequence[int], settings: Settings, ends: Callable[[list[int]], bool], stats: Stats
) -> list[int]:
    """The new tokens of the best sequence found, with the rules and the order of transformers' beam search."""
    processors, width = settings.all_processors(), settings.beams
    room = _room(decoder, prompt, settings)
    running: list[tuple[float, list[int]]] = [(0.0, [])]  # sum(log p), new tokens; best first
    finished: list[tuple[float, list[int]]] = []  # score, new tokens; best first
    logits = _prefill(decoder, [prompt], stats)
    while True:
        scores = np.stack(
            [
                total + sampling.apply(processors, ids, row)
                for (total, _), ids, row in zip(
                    running, decoder.tokens, sampling.log_softmax(logits.astype(np.float64)), strict=True
                )
            ]
        )
        # So many that `width` of them go on, though every ending token be among the best of every beam.
        candidates = _largest(scores, max(2, 1 + len(settings.eos)) * width)
        going: list[tuple[float, list[int]]] = []
        parents: list[int] = []
        for rank, place in enumerate(candidates):
            parent, token = divmod(int(place), scores.shape[1])
            total, new = float(scores[parent, token]), [*running[parent][1], token]
            if len(new) >= room or token in settings.eos or ends(new):
                if rank < width:
                    finished.append((total / len(new) ** settings.length_penalty, new))
            elif len(going) < width:
                going.append((total, new))
                parents.append(parent)
        finished = sorted(finished, key=lambda entry: -entry[0])[:width]
        if not going or (
            len(finished) == width and (settings.early_stopping or not _can_better(going, finished, settings))
        ):
            stats.new_tokens += len(finished[0][1])
            return finished[0][1]
        running = going
        decoder.take(parents)
        logits = _step(decoder, [new[-1] for _, new in running], stats)


def _largest(scores: np.ndarray, count: int) -> np.ndarray:
    """The flat places of the `count` largest scores, largest first, without those of -inf."""
    flat = scores.ravel()
    places = np.argpartition(flat, max(0, len(flat) - count))[-count:]
    places = places[np.argsort(-flat[places], kind="stable")]
    return places[np.isfinite(flat[places])]


def _can_better(
    running: list[tuple[float, list[int]]], finished: list[tuple[float, list[int]]], settings: Settings
) -> bool:
    """Whether the best that is running, were it to end now, would beat the worst that has finished."""
    total, new = running[0]
    return total / len(new) ** settings.length_penalty > finished[-1][0]


def _room(decoder: Decoder, prompt: Sequence[int], settings: Settings) -> int:
    """How many new tokens the prompt may get."""
    return settings.max_tokens if decoder.limit is None else min(settings.max_tokens, decoder.limit - len(prompt))


def _prefill(decoder: Decoder, prompts: list[Sequence[int]], stats: Stats) -> np.ndarray:
    start = time.perf_counter()
    logits, reused = decoder.start(prompts)
    stats.prefill_ms += (time.perf_counter() - start) * 1000
    stats.prompt_tokens += sum(map(len, prompts))
    stats.reused_tokens += reused
    return logits


def _step(decoder: Decoder, tokens: list[int], stats: Stats) -> np.ndarray:
    start = time.perf_counter()
    logits = decoder.append([[token] for token in tokens])
    stats.decode_ms += (time.perf_counter() - start) * 1000
    stats.steps += 1
    return logits
