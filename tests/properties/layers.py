"""One attention layer in several runtimes, and inputs drawn for it: sizes, masks of every kind, what a cache holds."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from hypothesis import strategies as st

from isoformer.export.evidence import torch_runner
from isoformer.export.graph import to_onnx
from isoformer.models.families import attention as family
from isoformer.models.mask_rule import INPUTS
from isoformer.models.signature import Signature
from isoformer.runtime.package import Package
from isoformer.runtime.package import Signature as RuntimeSignature
from isoformer.runtime.parity import bound, largest_error
from isoformer.runtime.session import Session

Arrays = dict[str, np.ndarray]
OUT = "attention_output"

CONFIGS = {
    "inputs": family.Config(24, 4, 2, causal=True, mask_inputs=INPUTS, bias=False),
    "cached": family.Config(24, 4, 2, causal=True, cache=True, position_kind="rotary", qk_norm=True),
    "window": family.Config(
        24,
        4,
        1,
        causal=True,
        cache=True,
        left_window=3,
        mask_inputs=("attention_mask", "segment_ids"),
        position_kind="alibi",
        scale=0.5,
    ),
    "cross": family.Config(20, 2, cross=True, key_size=14, value_head_dim=7, mask_rank=3),
    "heads": family.Config(24, 4, 2, mask_rank=4, mask_heads=4, softcap=3.0, sinks=True),
}


@dataclass
class Layer:
    """A configuration with random weights, run by PyTorch in float32 or by ONNX Runtime."""

    config: family.Config
    model: family.Model
    run: Callable[[Arrays], Arrays]

    @classmethod
    def build(cls, name: str, opset: int | None, folder: Path) -> "Layer":
        """opset None: PyTorch itself."""
        config = CONFIGS[name]
        torch.manual_seed(5)
        model = family.Model(config).eval()
        with torch.no_grad():  # biases and sinks as large as anything else
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.3)
        signature = family.signature(config)
        if opset is None:
            return cls(config, model, torch_runner(model, signature, torch.float32))
        ir.save(to_onnx(model, signature, opset), folder / "model.onnx")
        return cls(
            config, model, Session(Package(folder, {}, RuntimeSignature.read(signature.to_dict())), threads=1).run
        )

    @property
    def by_place(self) -> bool:
        """Whether distances count places, so that padding between two tokens moves them apart."""
        by_distance = self.config.left_window is not None or self.config.position_kind in ("alibi", "relative")
        return by_distance and ("attention_mask" not in self.config.mask_inputs or self.config.mask_rank != 2)

    @cached_property
    def signature(self) -> Signature:
        return family.signature(self.config)

    @cached_property
    def exact(self) -> Callable[[Arrays], Arrays]:
        return torch_runner(self.model, self.signature, torch.float64)

    @cached_property
    def float32(self) -> Callable[[Arrays], Arrays]:
        return torch_runner(self.model, self.signature, torch.float32)

    def allowed(self, inputs: Arrays) -> float:
        """The bound of `runtime.parity`, pooled as there: over inputs of the same sizes, other values each."""
        random, found = np.random.default_rng(0), []
        for _ in range(4):
            want, have = self.exact(inputs)[OUT], self.float32(inputs)[OUT]
            found.append(bound(largest_error(have, want), want))
            inputs = inputs | {
                spec.name: random.permuted(inputs[spec.name], axis=-1)
                for spec in self.signature.inputs
                if spec.kind == "value"
            }
        return max(found)

    def close(self, have: np.ndarray, want: np.ndarray, inputs: Arrays) -> None:
        """Two answers to what `inputs` ask, each off by its rounding."""
        assert largest_error(have, want) <= 2 * self.allowed(inputs)

    def visible(self, inputs: Arrays) -> np.ndarray:
        """(B, heads or 1, Lq, Lk): who sees whom, one pair at a time, from the inputs' meaning alone."""
        c, prefix = self.config, "encoder_" if self.config.cross else ""
        given = {name: inputs[prefix + name] for name in c.mask_inputs}
        batch, queries = inputs[family.HIDDEN].shape[:2]
        keys = inputs[family.CROSS].shape[1] if c.cross else queries
        keys += inputs[family.PAST_KEY].shape[2] if c.cache else 0
        seen = np.ones((batch, c.mask_heads, queries, keys), dtype=bool)
        for b, h, i, j in np.ndindex(*seen.shape):
            at = i + keys - queries
            later = c.causal and j > at and not ("prefix_lengths" in given and j < given["prefix_lengths"][b])
            behind = at - j
            if "attention_mask" in given and c.mask_rank == 2:  # windows count tokens
                row = given["attention_mask"][b]
                behind = max(0, row[: at + 1].sum() - 1) - max(0, row[: j + 1].sum() - 1)
            hidden = later or (c.left_window is not None and behind > c.left_window)
            if "attention_mask" in given:
                place = {2: (b, j), 3: (b, i, j), 4: (b, h, i, j)}[c.mask_rank]
                hidden = hidden or not given["attention_mask"][place]
            if "sequence_lengths" in given:
                hidden = hidden or j >= given["sequence_lengths"][b]
            if "segment_ids" in given:
                own, its = given["segment_ids"][b, at], given["segment_ids"][b, j]
                hidden = hidden or own != its or its == 0
            seen[b, h, i, j] = not hidden
        return seen

    def draw(self, data: st.DataObject, *, masked: bool = True, **sizes: int) -> Arrays:
        """Inputs of drawn sizes and, where masked, masks that may leave rows or whole sequences without a key."""
        least = {family.PAST: 0}
        sizes = {"batch_size": data.draw(st.integers(1, 3), "batch_size")} | sizes
        for axis in (family.LENGTH, family.PAST, family.ENCODER):
            if axis in self.signature.axis_names() and axis not in sizes:
                sizes[axis] = data.draw(st.integers(least.get(axis, 1), 9), axis)
        sizes[family.TOTAL] = sizes[family.LENGTH] + sizes.get(family.PAST, 0)
        random = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1), "seed"))
        inputs = {}
        for spec in self.signature.inputs:
            shape = tuple(sizes[axis] if isinstance(axis, str) else axis for axis in spec.axes)
            most = sizes.get(spec.along or "", 0)
            if spec.kind == "value":
                inputs[spec.name] = random.standard_normal(shape).astype(np.float32)
            elif not masked:
                inputs[spec.name] = np.full(shape, {"lengths": most}.get(spec.kind, 1), np.int64)
            elif spec.kind == "lengths":
                inputs[spec.name] = random.integers(0, most + 1, shape)
            elif spec.kind == "segments":
                inputs[spec.name] = random.integers(0, 3, shape)
            else:
                density = data.draw(st.sampled_from([0.0, 0.4, 0.8, 1.0]), "density")
                inputs[spec.name] = (random.random(shape) < density).astype(np.int64)
            if spec.name.endswith("prefix_lengths") and not masked:
                inputs[spec.name][:] = 0
        return inputs

    def moved(self, inputs: Arrays, places: dict[str, np.ndarray], sizes: dict[str, int]) -> Arrays:
        """The inputs with position i of an axis at places[axis][i] of sizes[axis]; the others hold masked noise."""
        result, random = {}, np.random.default_rng(1)
        if family.LENGTH in places and family.PAST in places:
            behind = sizes[family.PAST] + places[family.LENGTH]
            places = places | {family.TOTAL: np.concatenate([places[family.PAST], behind])}
            sizes = sizes | {family.TOTAL: sizes[family.PAST] + sizes[family.LENGTH]}
        for spec in self.signature.inputs:
            old = inputs[spec.name]
            shape = [sizes.get(str(axis)) or size for axis, size in zip(spec.axes, old.shape, strict=True)]
            new = np.zeros(shape, old.dtype)
            if spec.kind == "value":
                new = (100 * random.standard_normal(shape)).astype(old.dtype)
            index = [places.get(str(axis), np.arange(size)) for axis, size in zip(spec.axes, old.shape, strict=True)]
            new[np.ix_(*index)] = old
            result[spec.name] = new
        return result

    def rows(self, inputs: Arrays, rows: Any) -> Arrays:
        return {name: x[rows] for name, x in inputs.items()}
