"""The steps of a decoder behind its cache: keys and values stay ONNX Runtime's own from one step to the next."""

from collections.abc import Sequence
from itertools import takewhile
from typing import Any

import numpy as np

from isoformer.runtime.errors import InputError, IsoformerError, PackageError
from isoformer.runtime.providers import onnxruntime_module
from isoformer.runtime.session import Session, first_line
from isoformer.runtime.subnormals import flushed

PAST, PRESENT = "past_key_values.", "present."
NEEDED = ("input_ids", "attention_mask", "position_ids", "logits_positions")


class Decoder:
    """A batch of token sequences, and the keys and values that the package's graph has computed of them.

    tokens: the B sequences. They end at the same place of the cache, whose P positions are the length
    of the longest: in front of a shorter one stands padding, masked out.

    Raises PackageError for a package that is no decoder with a cache (see `isoformer.models.families.decoder`).
    """

    def __init__(self, session: Session) -> None:
        inputs = {spec.name: spec for spec in session.signature.inputs}
        self._past = [spec for spec in inputs.values() if spec.name.startswith(PAST)]
        outputs = ["logits", *(PRESENT + spec.name.removeprefix(PAST) for spec in self._past)]
        if not self._past or set(NEEDED) - inputs.keys() or outputs != [s.name for s in session.signature.outputs]:
            raise PackageError(f"{session.package.path} is not a decoder with a cache, so it continues no text")
        self.session = session
        self.limit = inputs["position_ids"].high  # tokens a sequence, None without a limit
        self.vocab_size = inputs["input_ids"].high
        self.tokens: list[list[int]] = []
        self._outputs = outputs
        self._cache: list[Any] = []  # an OrtValue (B, K, P, D) for each of `_past`

    @property
    def length(self) -> int:
        """P."""
        return max(map(len, self.tokens), default=0)

    def start(self, prompts: Sequence[Sequence[int]]) -> tuple[np.ndarray, int]:
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
            pairs = zip(prompts[0][:-1], self.tokens[0], strict=False)
            shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        self._cut(shared)
        return self.append([prompt[shared:] for prompt in prompts]), shared

    def append(self, new: Sequence[Sequence[int]]) -> np.ndarray:
        """The logits (B, vocabulary) behind each sequence with its new tokens, at least one.

        Raises InputError when sequences that hold tokens already get different numbers of them.
        """
        width, past = max(map(len, new)), self.length
        if past and any(len(row) != width for row in new):
            raise InputError(f"sequences get {sorted({len(row) for row in new})} new tokens; all get as many")
        held = self.tokens or [[] for _ in new]
        if len(held) != len(new):
            raise InputError(f"there are new tokens for {len(new)} sequences; there are {len(held)}")
        ids = np.zeros((len(new), width), np.int64)
        for row, tokens in enumerate(new):
            ids[row, width - len(tokens) :] = tokens
        held = [[*old, *more] for old, more in zip(held, new, strict=True)]
        begins = past + width - np.array([[len(row)] for row in held])  # (B, 1): the padding in front
        columns = np.arange(past + width)
        arrays = {
            "input_ids": ids,
            "attention_mask": (columns >= begins).astype(np.int64),
            "position_ids": np.maximum(columns[past:] - begins, 0),
            "logits_positions": np.full((len(new), 1), width - 1),
        }
        logits, self._cache = self._run(arrays)
        self.tokens = held
        return logits

    def take(self, rows: Sequence[int]) -> None:
        """Keeps the sequences `rows`, in that order; one may be taken several times."""
        if list(rows) == list(range(len(self.tokens))):
            return
        before, self.tokens = self.length, [list(self.tokens[row]) for row in rows]
        unused = before - self.length  # in front of every sequence that is left
        self._cache = [self._to_device(self._to_numpy(value)[rows, :, unused:]) for value in self._cache]

    def _cut(self, length: int) -> None:
        """Forgets every token from place `length` of the one sequence on; everything, if `length` is 0."""
        if length == 0:
            self.tokens, self._cache = [], []
        elif length < self.length:
            self.tokens = [self.tokens[0][:length]]
            self._cache = [self._to_device(self._to_numpy(value)[:, :, :length]) for value in self._cache]

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

    def _run(self, arrays: dict[str, np.ndarray]) -> tuple[np.ndarray, list[Any]]:
        """logits (B, vocabulary) and the new cache, which the run leaves where the provider computes."""
        ort, device = self.session.inference, self.session.provider
        binding = ort.io_binding()
        for name, array in arrays.items():
            binding.bind_cpu_input(name, array)
        cache = self._cache or [self._to_device(self._nothing(spec, len(arrays["input_ids"]))) for spec in self._past]
        for spec, value in zip(self._past, cache, strict=True):
            binding.bind_ortvalue_input(spec.name, value)
        for name in self._outputs:  # get_outputs() answers in this order
            binding.bind_output(name, "cpu" if name == "logits" else device)
        try:
            with flushed():
                ort.run_with_iobinding(binding)
        except Exception as error:  # ONNX Runtime's exceptions share no narrower base
            raise IsoformerError(f"ONNX Runtime failed: {first_line(error)}") from error
        logits, *present = binding.get_outputs()
        return logits.numpy()[:, 0], present

    @staticmethod
    def _nothing(spec: Any, batch: int) -> np.ndarray:
        _, heads, _, size = spec.axes
        return np.zeros((batch, heads, 0, size), spec.dtype)

    def _to_numpy(self, value: Any) -> np.ndarray:
        """A view on the CPU, a copy from elsewhere."""
        return np.from_dlpack(value) if self.session.provider == "cpu" else value.numpy()

    def _to_device(self, array: np.ndarray) -> Any:
        return onnxruntime_module().OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array), self.session.provider)
