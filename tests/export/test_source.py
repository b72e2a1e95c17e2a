import json
import re
import sys
from types import ModuleType

import pytest
from torch import nn

from isoformer.export import source
from isoformer.export.errors import ExportError
from isoformer.models import positions, registry
from isoformer.models.families import attention, speech
from isoformer.models.signature import Signature


def test_a_manifest_says_which_kind_of_scaling_its_positions_have(monkeypatch):
    scaled = attention.Config(
        8, 2, causal=True, position_kind="rotary", rotary_scaling=positions.LinearScaling(factor=2.0)
    )
    monkeypatch.setattr(attention, "TINY", scaled)
    recorded = source.resolve("attention").provenance["config"]
    assert json.loads(json.dumps(recorded))["rotary_scaling"] == {"factor": 2.0, "kind": "LinearScaling"}
    assert recorded["hidden_size"] == 8


@pytest.mark.parametrize("name", ["no_such_model", "no/such:thing"])
def test_what_is_no_model_is_refused_with_what_there_is(name):
    with pytest.raises(ExportError, match=rf"{name} is no folder .*{', '.join(registry.names())}.*not module:callable"):
        source.resolve(name)


def test_a_scaling_is_given_as_checkpoints_write_it():
    found = source.resolve(
        "attention",
        options=["position_kind=rotary", "head_dim=8", 'rotary_scaling={"rope_type": "linear", "factor": 2.0}'],
    )
    assert found.provenance["config"]["rotary_scaling"] == {"factor": 2.0, "kind": "LinearScaling"}


@pytest.mark.parametrize("text", ["2", "linear", '{"rope_type": "linear"}', '{"rope_type": "spiral"}', "[2]"])
def test_what_is_no_scaling_is_refused_in_one_line(text):
    with pytest.raises(ExportError, match=r'rotary_scaling is like \{"rope_type"') as caught:
        source.resolve("attention", options=["position_kind=rotary", f"rotary_scaling={text}"])
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)


def resolve_built(monkeypatch, result):
    module = ModuleType("built_here")
    monkeypatch.setattr(module, "build", lambda: result, raising=False)
    monkeypatch.setitem(sys.modules, "built_here", module)
    return source.resolve("built_here:build")


def test_a_callable_may_give_several_graphs(monkeypatch):
    model, signatures = speech.Model(speech.TINY), speech.signature(speech.TINY)
    found = resolve_built(monkeypatch, (model, signatures))
    assert found.signature == signatures
    assert registry.graphs(found.model, found.signature).keys() == signatures.keys()
    assert not found.model.training


def test_what_a_callable_may_not_give(monkeypatch):
    signature = attention.signature(attention.TINY)
    for wrong in (signature, (nn.Identity(), {}), (nn.Identity(), {"a/b": signature}), (nn.Identity(), {"a": "b"})):
        with pytest.raises(ExportError, match=r"must return \(torch.nn.Module, .*Signature\)$"):
            resolve_built(monkeypatch, wrong)
    with pytest.raises(ExportError, match=r"returns a str where a torch\.nn\.Module belongs"):
        resolve_built(monkeypatch, ("model", signature))
    assert isinstance(signature, Signature)
    with pytest.raises(ExportError, match=r"its module needs graph\(name\)"):
        resolve_built(monkeypatch, (nn.Identity(), {"one": signature}))


def test_options_of_several_values():
    options = ["image_size=8,12", "patch_size=4", "preprocessing=none", "task=classify-image", "labels=a,b"]
    config = source.resolve("vision", options=options).provenance["config"]
    assert (config["image_size"], config["labels"]) == ((8, 12), ("a", "b"))


@pytest.mark.parametrize(
    ("family", "option", "said"),
    [
        ("vision", "image_size=8x12", "image_size is made of int values with commas, not '8x12'"),
        ("vision", "preprocessing=1", "preprocessing is none here, or set in Python"),
        ("speech", "language_tokens=en,3", "language_tokens cannot be set here"),
        ("recommender", "hidden_size=9999999999999999999", "hidden_size is more than 16,777,216"),
    ],
)
def test_options_that_cannot_be_are_refused_in_one_line(family, option, said):
    with pytest.raises(ExportError, match=re.escape(said)) as caught:
        source.resolve(family, options=[option])
    assert "\n" not in str(caught.value)
