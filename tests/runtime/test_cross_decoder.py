import numpy as np
import pytest
import torch

from isoformer.export import weights
from isoformer.export.graph import to_onnx
from isoformer.models.families import encoder_decoder
from isoformer.models.families.encoder_decoder import DECODER, TINY
from isoformer.runtime.binding import CrossDecoder
from isoformer.runtime.package import Package, Signature
from isoformer.runtime.session import Session

PROMPTS = [[1, 2], [3, 4], [5, 6]]


@pytest.fixture(scope="module")
def session(tmp_path_factory) -> Session:
    folder, edge = tmp_path_factory.mktemp("decoder"), encoder_decoder.signature(TINY)[DECODER]
    torch.manual_seed(0)
    model = encoder_decoder.Model(TINY).eval().graph(DECODER)
    weights.save({DECODER: to_onnx(model, edge, 23)}, folder, 0)
    return Session(Package(folder, {}, Signature.read(edge.to_dict()), DECODER))


def known(session: Session, seed: int, length: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    mask = {"encoder_attention_mask": np.ones((3, length), np.int64)}
    names = [spec.name for spec in session.signature.inputs if ".encoder." in spec.name]
    return {name: rng.standard_normal((3, 3, length, 8)).astype(np.float32) for name in names} | mask


def test_another_encoders_output_of_as_many_rows_replaces_the_one_before(session):
    decoder, first, second = CrossDecoder(session), known(session, 1, 7), known(session, 2, 7)
    decoder.condition(first)
    before, _ = decoder.start(PROMPTS)
    decoder.condition(second)
    after, _ = decoder.start(PROMPTS)
    fresh = CrossDecoder(session)
    fresh.condition(second)
    np.testing.assert_array_equal(after, fresh.start(PROMPTS)[0])
    assert np.abs(after - before).max() > 1e-3
