"""float16 modules through the whole export: PyTorch's own float16 says how much rounding costs."""

import numpy as np
import pytest
import torch
from torch import nn

from isoformer.export import ExportError, export
from isoformer.models.attention import attend
from isoformer.models.signature import Signature, TensorSpec
from isoformer.runtime import Session
from tests.conftest import export_small


class Attend(nn.Module):
    def forward(self, query, key, value, mask):
        return attend(query, key, value, mask)


def signature(dtype: str) -> Signature:
    def vectors(name: str, length: str) -> TensorSpec:
        return TensorSpec(name, dtype, ("batch_size", 2, length, 8))

    shape = ("batch_size", "sequence_length", "key_length")
    return Signature(
        (
            vectors("query", "sequence_length"),
            vectors("key", "key_length"),
            vectors("value", "key_length"),
            TensorSpec("mask", "int64", shape, kind="mask"),
        ),
        (vectors("out", "sequence_length"),),
    )


@pytest.mark.parametrize("opset", [20, 23])
def test_a_float16_module_becomes_a_package(tmp_path, opset):
    package = (export if opset == 23 else export_small)(Attend(), signature("float16"), tmp_path / "half", opset=opset)
    assert 1e-5 < package.manifest["tolerances"]["out"]["absolute"] < 0.02
    rng = np.random.default_rng(0)
    arrays: dict[str, np.ndarray] = {
        n: rng.standard_normal((2, 2, 5, 8)).astype(np.float16) for n in ("query", "key", "value")
    }
    arrays["mask"] = (rng.random((2, 5, 5)) < 0.5).astype(np.int64)
    arrays["mask"][1, 2] = 0
    assert package.manifest["precision"] == "float16"
    out = Session(package).run(arrays)["out"]
    assert out.dtype == np.float16
    assert (out[1, :, 2] == 0).all()
    tensors = {
        name: torch.from_numpy(a).double() if a.dtype == np.float16 else torch.from_numpy(a)
        for name, a in arrays.items()
    }
    np.testing.assert_allclose(out, Attend()(**tensors).numpy(), atol=2e-3)


def test_float64_is_for_references(tmp_path):
    with pytest.raises(ExportError, match=r"query, key, value, out is float64.*export the model in float32"):
        export(Attend(), signature("float64"), tmp_path / "wide")
    assert not (tmp_path / "wide").exists()
