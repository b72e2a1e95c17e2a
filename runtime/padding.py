"""Where a batch is padding, from its mask inputs alone; and what graphs that run on real tokens only put there."""

from collections.abc import Collection

import numpy as np

from isoformer.runtime.cases import Arrays, takes_part
from isoformer.runtime.package import Signature
from isoformer.runtime.parity import sample_indices
from isoformer.runtime.relations import key_axis


def computed(signature: Signature, inputs: Arrays) -> np.ndarray | None:
    """(batch, length), bool: the tokens that a padding-free graph computes: the real ones, and the first of each row.

    None where the signature's only mask is not one of each sequence's keys.
    """
    axis = key_axis(signature)
    sizes = [inputs[spec.name].shape[spec.axes.index(axis)] for spec in signature.inputs if axis in spec.axes]
    mask = next((spec for spec in signature.inputs if spec.masks), None)
    if axis is None or mask is None or not sizes:
        return None
    kept = takes_part(mask, inputs[mask.name], sizes[0])
    return kept | (np.arange(sizes[0]) == 0)


def without(signature: Signature, names: Collection[str], inputs: Arrays, outputs: Arrays) -> Arrays:
    """The reference's outputs as a padding-free graph has them: those of the names are 0 where nothing is computed.

    Outputs may be whole, or the values at `sample_indices` of the flat array.
    """
    kept = computed(signature, inputs) if names else None
    if kept is None:
        return outputs
    found = dict(outputs)
    for spec in signature.outputs:
        if spec.name in names:
            value = outputs[spec.name]
            width = int(spec.axes[2])
            where = np.repeat(kept.reshape(-1), width)
            if value.shape != (*kept.shape, width):
                where = where[sample_indices(where.size)]
            found[spec.name] = np.where(where.reshape(value.shape), value, 0).astype(value.dtype)
    return found
