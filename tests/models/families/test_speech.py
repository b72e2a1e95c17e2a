from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from isoformer.models.families import encoder_decoder
from isoformer.models.families.speech import DECODER, ENCODER, FEATURES, TINY, Config, Model, signature, task

LENGTH, BATCH = 13, 3


def build(**options: Any) -> Model:
    """A float64 model of random weights, biases and norms included."""
    generator = torch.Generator().manual_seed(0)
    model = Model(replace(TINY, **options)).double().eval()
    for name, parameter in model.named_parameters():
        nn.init.normal_(parameter, mean=1.0 if "norm.weight" in name else 0.0, std=0.3, generator=generator)
    return model.requires_grad_(False)


def features(length: int = LENGTH, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(BATCH, TINY.num_mels, 2 * length, generator=generator, dtype=torch.float64)


def ones(length: int = LENGTH) -> Tensor:
    return torch.ones(BATCH, length, dtype=torch.int64)


def close(have: Tensor, want: Tensor) -> None:
    torch.testing.assert_close(have, want, atol=1e-11, rtol=0)


@pytest.fixture(scope="module")
def model() -> Model:
    return build()


# what the mask hides


@pytest.mark.parametrize("garbage", [0.0, 7.0, float("nan")])
def test_what_stands_under_the_mask_changes_nothing(model, garbage):
    x, mask = features(), ones()
    mask[:, 8:] = 0
    want = model.encoder(x[:, :, :16], ones(8))
    x[:, :, 16:] = garbage
    close(model.encoder(x, mask)[:, :8], want)


def test_each_row_is_itself_alone(model):
    x, lengths = features(), (13, 5, 1)
    mask = (torch.arange(LENGTH) < torch.tensor(lengths)[:, None]).long()
    together = model.graph(ENCODER)(x, mask)
    for row, length in enumerate(lengths):
        alone = model.graph(ENCODER)(x[row : row + 1, :, : 2 * length], torch.ones(1, length, dtype=torch.int64))
        for name, value in alone.items():
            found = together[name][row : row + 1]
            close(found[:, :length] if found.ndim == 3 else found[:, :, :length], value)


def test_every_real_frame_counts(model):
    """Each changes the encoder's frames, or the tests above would show nothing."""
    want = model.encoder(features(), ones())
    for frame in (0, 1, 12, 25):
        x = features()
        x[:, :, frame] += 1
        assert (model.encoder(x, ones()) - want).abs().amax(-1).min() > 1e-6


def test_a_row_without_a_frame_is_finite(model):
    assert model.encoder(features(), 0 * ones()).isfinite().all()


# the graphs


def test_graphs_give_what_the_signature_says(model):
    shapes = {
        "batch_size": BATCH,
        "num_frames": 2 * LENGTH,
        "num_samples": 320 * LENGTH,
        "encoder_sequence_length": LENGTH,
    }
    waveform = torch.randn(BATCH, 320 * LENGTH, dtype=torch.float64)
    found = {FEATURES: model.graph(FEATURES)(waveform), ENCODER: model.graph(ENCODER)(features(), ones())}
    for name, outputs in found.items():
        specs = signature(TINY)[name].outputs
        assert list(outputs) == [spec.name for spec in specs]
        for spec in specs:
            assert outputs[spec.name].shape == tuple(shapes.get(str(axis), axis) for axis in spec.axes)


def test_axes_of_one_another():
    """160 samples to a frame of features, two of these to one of the encoder."""
    features_axes, encoder_axes = (signature(TINY)[name].axes for name in (FEATURES, ENCODER))
    assert features_axes["num_samples"].total({"num_frames": 7}) == 1120
    assert encoder_axes["num_frames"].total({"encoder_sequence_length": 7}) == 14
    assert features_axes["num_frames"].max == 2 * (encoder_axes["encoder_sequence_length"].max or 0) == 128


def test_the_decoder_is_an_encoder_decoders():
    assert signature(TINY)[DECODER] == encoder_decoder.decoder_signature(TINY.decoder)
    assert TINY.decoder.norm_order == "pre"
    assert TINY.decoder.position_kind == "learned"
    assert TINY.decoder.tied_embeddings
    assert TINY.decoder.embedding_scale is None


def test_training_and_the_graphs_agree(model):
    ids = torch.randint(0, TINY.vocab_size, (BATCH, 5), generator=torch.Generator().manual_seed(2))
    mask = ones()
    mask[1, 6:] = 0
    encoded = model.graph(ENCODER)(features(), mask)
    past = {name.replace("present", "past_key_values"): x for name, x in encoded.items() if "present" in name}
    empty = torch.zeros(BATCH, 3, 0, 7, dtype=torch.float64)
    past |= {f"past_key_values.{i}.decoder.{kind}": empty for i in range(2) for kind in ("key", "value")}
    places = torch.arange(5).expand(BATCH, -1)
    found = model.graph(DECODER)(
        ids,
        torch.ones_like(ids),
        position_ids=places,
        logits_positions=places,
        encoder_attention_mask=mask,
        **past,
    )
    close(model(features(), mask, ids), found["logits"])
    assert (model(features(), ones(), ids)[1] - found["logits"][1]).abs().max() > 1e-6  # the mask is read


def test_gradients_reach_every_weight():
    model = Model(TINY)
    logits = model(features().float(), decoder_input_ids=torch.tensor([[1, 2, 3]] * BATCH))
    logits.square().sum().backward()
    still = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert not still


def test_fewer_than_a_million_parameters(model):
    assert sum(parameter.numel() for parameter in model.parameters()) < 1_000_000


# ctc


def test_ctc_names_a_token_a_frame():
    model = build(head="ctc")
    config = model.config
    assert set(signature(config)) == {FEATURES, ENCODER}
    found = model.graph(ENCODER)(features(), ones())
    assert {name: value.shape for name, value in found.items()} == {"logits": (BATCH, LENGTH, TINY.vocab_size)}
    close(model(features()), found["logits"])
    assert task(config) == {
        "name": "transcribe-ctc",
        "sample_rate": 16000,
        "hop_length": 160,
        "max_frames": 128,
        "stride": 2,
        "blank": 0,
    }
    assert not any(name.startswith(("decoder", "tokens")) for name in model.state_dict())


# what is refused


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_mels": 0}, "num_mels is 0"),
        ({"max_frames": 7}, "max_frames is 7; it must be a multiple of 2"),
        ({"max_frames": 0}, "max_frames is 0"),
        ({"head": "rnnt"}, "head 'rnnt' is not one of"),
        ({"num_heads": 4}, "hidden_size 21 is not a multiple of num_heads 4"),
        ({"eos_token_id": 101}, "eos_token_id is 101; the vocabulary has 0 to 100"),
        ({"blank_token_id": 101}, "blank_token_id is 101; the vocabulary has 0 to 100"),
        ({"suppressed_tokens": (3, 999)}, "the suppressed token 999 is 999"),
        ({"language_tokens": (("en", 101),)}, "the token of en is 101"),
        ({"timestamp_begin_token_id": -1}, "timestamp_begin_token_id is -1"),
    ],
)
def test_a_configuration_that_cannot_be(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(TINY, **changes)


def test_frames_that_do_not_fit_the_mask(model):
    with pytest.raises(ValueError, match="there are 2 frames of features to each of the mask"):
        model.encoder(features(), ones(LENGTH - 1))


def test_a_decoder_needs_tokens_and_ctc_takes_none(model):
    for one, ids in ((model, None), (build(head="ctc"), torch.ones(BATCH, 2, dtype=torch.int64))):
        with pytest.raises(ValueError, match="decoder_input_ids go with a decoder"):
            one(features(), decoder_input_ids=ids)


def test_the_task_names_what_the_runtime_reads():
    config = Config(**{**TINY.__dict__, "language_tokens": (("en", 5), ("de", 6)), "task_tokens": (("translate", 7),)})
    said = task(config) or {}
    assert said["name"] == "transcribe"
    assert (said["languages"], said["tasks"]) == ({"en": 5, "de": 6}, {"translate": 7})
    assert (said["sample_rate"], said["hop_length"], said["max_frames"]) == (16000, 160, 128)
    assert (said["decoder_start"], said["eos"], said["timestamp_begin"], said["max_length"]) == ([0], [1], 71, 64)
