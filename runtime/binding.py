"""The steps of a decoder behind its cache, whose keys and values stay ONNX Runtime's own from one step to the next."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from isoformer.runtime.errors import InputError, IsoformerError, PackageError
from isoformer.runtime.package import PAST, PRESENT, TensorSpec
from isoformer.runtime.providers import onnxruntime_module
from isoformer.runtime.session import Session, first_line
from isoformer.runtime.subnormals import flushed

NEEDED = ("input_ids", "attention_mask", "logits_positions")
GIVEN = ".encoder."  # of the keys and values that an encoder made, which no step changes
# Of a run of more than a token: at most PIECE tokens of a row, or fewer, but not under LEAST, so that rows x tokens x
# capacity are at most SCORES, which stand in memory for every head. See docs/decisions/variants.md.
PIECE, LEAST, SCORES = 256, 64, 2**20
Tokens = Sequence[Sequence[int]]


class Decoder:
    """A batch of token sequences, and the keys and values that the package's graph has computed of them.

    tokens: the B sequences. How their cache lies in memory depends on the session's graph: see `PlainCache`
    and `SharedCache`.

    Raises PackageError for a package that is no decoder with a cache (see `isoformer.models.families.decoder`).
    """

    def __init__(self, session: Session) -> None:
        inputs = {spec.name: spec for spec in session.signature.inputs}
        past = [spec for spec in inputs.values() if spec.name.startswith(PAST) and GIVEN not in spec.name]
        outputs = ["logits", *(_present(spec) for spec in past)]
        if not past or set(NEEDED) - inputs.keys() or outputs != [s.name for s in session.signature.outputs]:
            raise PackageError(f"{session.package.path} is not a decoder with a cache, so it continues no text")
        self.session = session
        # Tokens a sequence, None without a limit.
        self.limit = inputs["position_ids"].high if "position_ids" in inputs else None
        self.vocab_size = inputs["input_ids"].high
        self.tokens: list[list[int]] = []
        self._width = int(session.signature.outputs[0].axes[2])  # of the logits
        self._inputs = inputs.keys()
        self._cache: PlainCache | SharedCache = (
            SharedCache(past, self.limit, session.provider)
            if session.shared_cache
            else PlainCache(past, session.provider)
        )

    @property
    def length(self) -> int:
        """P: of the longest sequence."""
        return max(map(len, self.tokens), default=0)

    def start(self, prompts: Tokens) -> tuple[np.ndarray, int]:
        """The logits (B, vocabulary) behind each prompt, which replace whatever was there.

        One prompt that begins as the one sequence here does computes only the rest; the number that is
        returned says how many tokens were spared so.
        Raises InputError for a prompt that is empty, leaves no room or holds an id out of the vocabulary.
        """
        for prompt in prompts:
            self._check(prompt)
        shared = 0
        if len(prompts) == len(self.tokens) == 1:
            # The last token is computed in any case: its logits are what is asked for.
            shared = _shared_length(prompts[0][:-1], self.tokens[0])
        self._cut(shared)
        return self.append([prompt[shared:] for prompt in prompts]), shared

    def append(self, new: Tokens) -> np.ndarray:
        """The logits (B, vocabulary) behind each sequence with its new tokens, at least one.

        Raises InputError when sequences that hold tokens already get different numbers of them.
        """
        width = max(map(len, new))
        if self.length and any(len(row) != width for row in new):
            raise InputError(f"sequences get {sorted({len(row) for row in new})} new tokens; all get as many")
        if self.tokens and len(self.tokens) != len(new):
            raise InputError(f"there are new tokens for {len(new)} sequences; there are {len(self.tokens)}")
        if self.length and width > 1 and len(new) > 1 and isinstance(self._cache, SharedCache):
            for column in range(width - 1):  # its operator takes several rows one token at a time
                self._step([[row[column]] for row in new])
            new = [[row[-1]] for row in new]
        return self._step(new)

    def score(self, sequences: Tokens) -> list[np.ndarray]:
        """The logits (length, vocabulary) behind every token of each sequence, as a prompt is computed.

        They replace whatever was there. Raises InputError as `start` does.
        """
        for sequence in sequences:
            self._check(sequence)
        self._cut(0)
        width = max(map(len, sequences))
        logits = self._run(sequences, np.tile(np.arange(width), (len(sequences), 1)))
        begins = [self._cache.begin(width, len(row)) for row in sequences]
        return [logits[row, begin : begin + len(sequences[row])] for row, begin in enumerate(begins)]

    def held(self) -> dict[str, np.ndarray]:
        """By the names of their inputs the keys and values (B, K, P or more, D) of every sequence, in a `SharedCache`.

        On a CPU they are the cache's own memory. Raises InputError for a graph whose cache grows.
        """
        if not isinstance(self._cache, SharedCache):
            raise InputError(f"{self.session.package.path}: this graph has no cache that is written in place")
        return self._cache.read()

    def take(self, rows: Sequence[int]) -> None:
        """Keeps the sequences `rows`, in that order; one may be taken several times.

        Where two begin with the same tokens, they keep the keys and values of these that they have: what beams share
        is not copied.
        """
        if list(rows) == list(range(len(self.tokens))):
            return
        before, held = self.length, self.tokens
        self.tokens = [list(held[row]) for row in rows]
        if len(rows) == len(held) and isinstance(self._cache, SharedCache):
            self._cache.exchange(rows, min(map(_shared_length, held, self.tokens)), self.length)
        else:
            self._cache.take(rows, before, self.length)

    def _step(self, new: Tokens) -> np.ndarray:
        width = max(map(len, new))
        last = [self._cache.begin(width, len(row)) + len(row) - 1 for row in new]
        return self._run(new, np.array(last)[:, None])[:, 0]

    def forget(self) -> None:
        """Forgets every token, so that the next prompt is computed whole."""
        self._cut(0)

    def _cut(self, length: int) -> None:
        """Forgets every token from place `length` of the one sequence on; everything, if `length` is 0."""
        if length == 0:
            self.tokens = []
            self._cache.clear()
        elif length < self.length:
            self.tokens = [self.tokens[0][:length]]
            self._cache.cut(length)

    def _check(self, prompt: Sequence[int]) -> None:
        if not prompt:
            raise InputError("a prompt has no tokens; give at least one")
        if self.limit is not None and len(prompt) >= self.limit:
            raise InputError(
                f"a prompt has {len(prompt)} tokens; this model holds {self.limit} with the answer: shorten the prompt"
            )
        if self.vocab_size is not None and not 0 <= min(prompt) <= max(prompt) < self.vocab_size:
            raise InputError(
                f"a prompt holds ids from {min(prompt)} to {max(prompt)}; they go from 0 to {self.vocab_size - 1}"
            )

    def _run(self, new: Tokens, asked: np.ndarray) -> np.ndarray:
        """The logits (B, N, vocabulary) behind the places `asked` (B, N) of the new tokens, which become part of it."""
        held = self.tokens or [[] for _ in new]
        if isinstance(self._cache, SharedCache) and (piece := self._cache.piece(held, new)) is not None:
            logits = self._computed_in_pieces(self._cache, held, new, asked, piece)
        else:
            logits = self._computed(self._cache, held, new, asked)
        self.tokens = [[*old, *more] for old, more in zip(held, new, strict=True)]
        return logits

    def _computed_in_pieces(
        self, cache: "SharedCache", held: Tokens, new: Tokens, asked: np.ndarray, piece: int
    ) -> np.ndarray:
        """A row after the other, as the operator takes more than one token behind others of a single row only."""
        logits = np.zeros((*asked.shape, self._width), np.float32)
        for row, (old, more) in enumerate(zip(held, new, strict=True)):
            own = cache.row(row)
            for begin, end in _pieces(len(more), piece):
                here = (asked[row] >= begin) & (asked[row] < end)
                places = asked[row, here] - begin if here.any() else np.array([0])
                found = self._computed(own, [[*old, *more[:begin]]], [more[begin:end]], places[None])
                if here.any():
                    logits[row, here] = found[0]
        return logits

    def _computed(self, cache: "PlainCache | SharedCache", held: Tokens, new: Tokens, asked: np.ndarray) -> np.ndarray:
        """The logits of one run, which writes into the cache."""
        arrays = cache.inputs(held, new) | {"logits_positions": asked}
        binding = cache.bind(self.session.inference)
        for name, array in arrays.items():
            if name in self._inputs:
                binding.bind_cpu_input(name, array)
        self._bind_given(binding)
        logits = np.empty((*asked.shape, self._width), np.float32)
        binding.bind_ortvalue_output("logits", onnxruntime_module().OrtValue.ortvalue_from_numpy(logits))
        try:
            with flushed():
                self.session.inference.run_with_iobinding(binding)
        except Exception as error:  # ONNX Runtime's exceptions share no narrower base
            raise IsoformerError(f"ONNX Runtime failed: {first_line(error)}") from error
        cache.keep(binding)
        return logits

    def _bind_given(self, binding: Any) -> None:
        """Inputs that are the same in every step; a decoder alone has none."""


class CrossDecoder(Decoder):
    """A `Decoder` beside an encoder's output, whose keys and values are computed once and read in every step."""

    def __init__(self, session: Session) -> None:
        super().__init__(session)
        self.given = [spec.name for spec in session.signature.inputs if GIVEN in spec.name]
        self.given += [name for name in self._inputs if name == "encoder_attention_mask"]
        if len(self.given) < 2:
            raise PackageError(f"{session.package.path} has no decoder that reads an encoder's output")
        if session.shared_cache:  # whose rows would need what is given to each in pieces
            raise PackageError(f"{session.package.path}: {session.variant} reads an encoder's output in place")
        self._known: dict[str, np.ndarray] = {}
        self._rows: list[int] = []  # of `_known`, one a sequence
        self._bound: dict[str, Any] = {}  # those rows as OrtValues

    def condition(self, known: Mapping[str, np.ndarray]) -> None:
        """What the next sequences answer to, a row each: past_key_values.{i}.encoder.key|value, encoder_attention_mask.

        It replaces whatever was there. Raises InputError for another set of names or rows.
        """
        if set(known) != set(self.given):
            raise InputError(f"the decoder reads {', '.join(self.given)}; it was given {', '.join(known)}")
        rows = {name: len(array) for name, array in known.items()}
        if len(set(rows.values())) != 1:
            raise InputError(f"the encoder's arrays differ in rows: {rows}")
        self._cut(0)
        self._known = {name: np.ascontiguousarray(array) for name, array in known.items()}
        self._bound = {}  # of other arrays, though their rows be as many
        self._gather(range(len(known[self.given[0]])))

    def start(self, prompts: Tokens) -> tuple[np.ndarray, int]:
        """As `Decoder.start`, a prompt for each row of what `condition` was given."""
        if len(prompts) != len(self._rows):
            raise InputError(f"there are {len(prompts)} prompts for {len(self._rows)} rows of an encoder's output")
        return super().start(prompts)

    def take(self, rows: Sequence[int]) -> None:
        super().take(rows)
        self._gather([self._rows[row] for row in rows])

    def _gather(self, rows: Sequence[int]) -> None:
        if self._bound and list(rows) == self._rows:
            return
        self._rows = list(rows)
        whole = self._rows == list(range(len(self._known[self.given[0]])))
        make, device = onnxruntime_module().OrtValue.ortvalue_from_numpy, self.session.provider
        self._bound = {name: make(a if whole else a[self._rows], device) for name, a in self._known.items()}

    def _bind_given(self, binding: Any) -> None:
        for name, value in self._bound.items():
            binding.bind_ortvalue_input(name, value)


class PlainCache:
    """Keys and values (B, K, P, D) that grow with each step, which copies them: the canonical graph's.

    The sequences end at the same place, P being the length of the longest: in front of a shorter one stands
    padding, masked out.
    """

    def __init__(self, past: list[TensorSpec], device: str) -> None:
        self._past, self._device = past, device
        self._values: list[Any] = []  # an OrtValue for each of `past`

    @staticmethod
    def begin(width: int, length: int) -> int:
        """Where the `length` tokens of a row begin among the `width` columns."""
        return width - length

    def inputs(self, held: Tokens, new: Tokens) -> dict[str, np.ndarray]:
        past, width = max(map(len, held)), max(map(len, new))
        ids = np.zeros((len(new), width), np.int64)
        for row, tokens in enumerate(new):
            ids[row, width - len(tokens) :] = tokens
        lengths = np.array([[len(old) + len(more)] for old, more in zip(held, new, strict=True)])
        begins, columns = past + width - lengths, np.arange(past + width)  # (B, 1): the padding in front
        if not self._values:
            self._values = [self._to_device(np.zeros(_sizes(spec, len(new), 0), spec.dtype)) for spec in self._past]
        return {
            "input_ids": ids,
            "attention_mask": (columns >= begins).astype(np.int64),
            "position_ids": np.maximum(columns[past:] - begins, 0),
        }

    def bind(self, inference: Any) -> Any:
        """An IOBinding that reads the cache and makes the next."""
        binding = inference.io_binding()
        for spec, value in zip(self._past, self._values, strict=True):
            binding.bind_ortvalue_input(spec.name, value)
            binding.bind_output(_present(spec), self._device)
        return binding

    def keep(self, binding: Any) -> None:
        """What the run has made."""
        self._values = binding.get_outputs()[: len(self._past)]  # in the order in which they were bound

    def take(self, rows: Sequence[int], before: int, length: int) -> None:
        unused = before - length  # in front of every sequence that is left
        self._values = [self._to_device(self._to_numpy(value)[rows, :, unused:]) for value in self._values]

    def cut(self, length: int) -> None:
        self._values = [self._to_device(self._to_numpy(value)[:, :, :length]) for value in self._values]

    def clear(self) -> None:
        self._values = []

    def _to_numpy(self, value: Any) -> np.ndarray:
        """A view on the CPU, a copy from elsewhere."""
        return np.from_dlpack(value) if self._device == "cpu" else value.numpy()

    def _to_device(self, array: np.ndarray) -> Any:
        return onnxruntime_module().OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array), self._device)


class SharedCache:
    """Keys and values (B, K, capacity, D) that are written in place, in the memory of the provider's device.

    Each sequence begins at place 0, and behind its end stands what is not read. The capacity doubles when a
    sequence outgrows it, so that n tokens cost fewer than n copied places in all. On a GPU a step copies nothing;
    growing, taking rows and exchanging them go through the host.
    """

    SMALLEST = 256

    def __init__(self, past: list[TensorSpec], limit: int | None, device: str = "cpu") -> None:
        self._past, self._limit, self._device = past, limit, device
        # Of others ONNX Runtime never keeps all scores; and in 8 bits a prompt reads its own keys unrounded in one run.
        self._in_pieces = device == "cpu" and all(spec.dtype == "float32" for spec in past)
        self._hold: Callable[[np.ndarray], HostMemory | DeviceMemory]
        self._hold = HostMemory if device == "cpu" else partial(DeviceMemory, device=device)
        self._held: list[HostMemory | DeviceMemory] = []  # one for each of `past`
        self._binding: Any = None

    @staticmethod
    def begin(_width: int, _length: int) -> int:
        """Where the tokens of a row begin among the columns."""
        return 0

    def inputs(self, held: Tokens, new: Tokens) -> dict[str, np.ndarray]:
        if (step := self._step(held, new)) is not None:
            return step
        self.reserve(held, new)
        past, width = np.array([[len(row)] for row in held]), max(map(len, new))
        ids = np.zeros((len(new), width), np.int64)
        for row, tokens in enumerate(new):
            ids[row, : len(tokens)] = tokens
        ends = past + np.array([[len(row)] for row in new])  # (B, 1)
        return {
            "input_ids": ids,
            "attention_mask": (np.arange(int(ends.max())) < ends).astype(np.int64),
            "position_ids": np.minimum(past + np.arange(width), ends - 1),
        }

    def _step(self, held: Tokens, new: Tokens) -> dict[str, np.ndarray] | None:
        """The inputs of one token for each of sequences that are equally long, in half the time; or None."""
        lengths = {len(row) for row in held}
        if len(lengths) > 1 or any(len(row) != 1 for row in new):
            return None
        past, batch = lengths.pop(), len(new)
        self._reserve(batch, past + 1, past)
        return {
            "input_ids": np.array(new, np.int64),
            "attention_mask": np.ones((batch, past + 1), np.int64),
            "position_ids": np.full((batch, 1), past, np.int64),
        }

    def bind(self, inference: Any) -> Any:
        """An IOBinding whose past and present are the same memory; the same one until that moves."""
        if self._binding is None:
            self._binding = inference.io_binding()
            for spec, held in zip(self._past, self._held, strict=True):
                self._binding.bind_ortvalue_input(spec.name, held.value)
                self._binding.bind_ortvalue_output(_present(spec), held.value)
        return self._binding

    def keep(self, binding: Any) -> None:
        """Nothing: they are where they were."""

    def read(self) -> dict[str, np.ndarray]:
        """Everything by name, what stands behind the ends too."""
        return {spec.name: held.read() for spec, held in zip(self._past, self._held, strict=True)}

    def take(self, rows: Sequence[int], _before: int, length: int) -> None:
        kept = [held.read()[rows, :, :length] for held in self._held]
        self._renew(len(rows), self._held[0].value.shape()[2], kept)

    def exchange(self, rows: Sequence[int], start: int, end: int) -> None:
        """Each row becomes the one that `rows` names; they differ in the places from `start` to `end` alone."""
        for held in self._held:
            array = held.read()
            array[:, :, start:end] = array[rows, :, start:end]
            held.write(array)

    def cut(self, length: int) -> None:
        """Nothing: what stands behind the end is not read."""

    def clear(self) -> None:
        """Nothing: the memory serves the next sequences."""

    def piece(self, held: Tokens, new: Tokens) -> int | None:
        """How many of the new tokens of a row to compute at a time, a row after the other; None is all at once."""
        width = max(map(len, new))
        if width == 1 or not self._in_pieces:
            return None
        self.reserve(held, new)
        capacity = self._held[0].value.shape()[2]
        most = min(PIECE, max(LEAST, SCORES // capacity))
        return None if width <= most and len(new) * width * capacity <= SCORES else most

    def row(self, number: int) -> "SharedCache":
        """The cache of one sequence, on a CPU in the same memory."""
        if self._held[0].value.shape()[0] == 1:
            return self
        one = SharedCache(self._past, self._limit, self._device)
        one._held = [self._hold(held.read()[number : number + 1]) for held in self._held]
        return one

    def reserve(self, held: Tokens, new: Tokens) -> None:
        """Room for the new tokens."""
        ends = (len(old) + len(more) for old, more in zip(held, new, strict=True))
        self._reserve(len(new), max(ends), max(map(len, held)))

    def _reserve(self, batch: int, length: int, used: int) -> None:
        """Room for `length` tokens a sequence, of which the first `used` stay."""
        if self._held:
            rows, _, places, _ = self._held[0].value.shape()
            if rows == batch and places >= length:
                return
        capacity = max(self.SMALLEST, 1 << (length - 1).bit_length())
        capacity = max(length, capacity if self._limit is None else min(capacity, self._limit))
        self._renew(batch, capacity, [held.read()[:, :, :used] for held in self._held] if used else [])

    def _renew(self, batch: int, capacity: int, kept: list[np.ndarray]) -> None:
        arrays = _zeros([(_sizes(spec, batch, capacity), spec.dtype) for spec in self._past])
        for array, old in zip(arrays, kept, strict=False):
            array[:, :, : old.shape[2]] = old
        self._held, self._binding = [self._hold(array) for array in arrays], None


class HostMemory:
    """An array and the OrtValue that is the same memory."""

    def __init__(self, array: np.ndarray) -> None:
        self._array = array
        self.value = onnxruntime_module().OrtValue.ortvalue_from_numpy(array)

    def read(self) -> np.ndarray:
        return self._array

    def write(self, array: np.ndarray) -> None:
        """Nothing: whoever changed what was read has changed it."""


class DeviceMemory:
    """An OrtValue on a device, which is read and written as a whole; its address stays."""

    def __init__(self, array: np.ndarray, device: str) -> None:
        self.value = onnxruntime_module().OrtValue.ortvalue_from_numpy(array, device)

    def read(self) -> np.ndarray:
        """A copy."""
        return self.value.numpy().copy()

    def write(self, array: np.ndarray) -> None:
        self.value.update_inplace(array)


def _zeros(wanted: list[tuple[tuple[Any, ...], str]]) -> list[np.ndarray]:
    """An array of each shape and dtype; where they are all alike, in one piece of memory.

    numpy asks the system for huge pages where an array is large, which a layer's alone is not, and behind 2,000 tokens
    attention reads from these a tenth faster.
    """
    if len(set(wanted)) == 1:
        shape, dtype = wanted[0]
        return list(np.zeros((len(wanted), *shape), dtype))
    return [np.zeros(shape, dtype) for shape, dtype in wanted]


def _pieces(length: int, most: int) -> list[tuple[int, int]]:
    """Where pieces of at most so many tokens begin and end, all about as long: a token alone would be a step."""
    count = -(-length // most)
    return [(length * i // count, length * (i + 1) // count) for i in range(count)]


def _shared_length(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens both begin with."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((place for place, (x, y) in pairs if x != y), min(len(one), len(other)))


def _present(spec: TensorSpec) -> str:
    return PRESENT + spec.name.removeprefix(PAST)


def _sizes(spec: TensorSpec, batch: int, length: int) -> tuple[Any, ...]:
    _, heads, _, size = spec.axes
    return batch, heads, length, size
