import copy
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from isoformer.models import checkpoints
from isoformer.models.checkpoints import Checkpoint, CheckpointError

ROWS, LENGTH, PAD = 3, 11, 1
SIZES = {
    "vocab_size": 101,
    "hidden_size": 33,
    "num_attention_heads": 3,
    "num_hidden_layers": 2,
    "intermediate_size": 53,
    "max_position_embeddings": 41,
    "type_vocab_size": 2,
    "attn_implementation": "eager",
}
DISTIL_SIZES = {
    "vocab_size": 101,
    "dim": 33,
    "n_heads": 3,
    "n_layers": 2,
    "hidden_dim": 53,
    "max_position_embeddings": 41,
    "attn_implementation": "eager",
}
KINDS: dict[str, tuple[str, Any, dict[str, Any]]] = {
    "bert": ("Bert", transformers.BertConfig, SIZES),
    "roberta": ("Roberta", transformers.RobertaConfig, SIZES | {"pad_token_id": PAD}),
    "distilbert": ("DistilBert", transformers.DistilBertConfig, DISTIL_SIZES),
}
LABELS = {0: "low", 1: "middle", 2: "high", 3: "other", 4: "none"}
MASKS = {
    "none": [[1] * 11] * 3,
    "right": [[1] * 11, [1] * 7 + [0] * 4, [1] + [0] * 10],
    "left": [[1] * 11, [0] * 4 + [1] * 7, [0] * 10 + [1]],
    "holes": [[1, 0, 1, 1, 0, 0, 1, 1, 1, 0, 1], [0, 0, 1, 0, 1, 1, 0, 1, 0, 0, 0], [1] * 11],
}


@pytest.fixture(autouse=True, scope="module")
def _quiet() -> None:
    transformers.logging.disable_progress_bar()


def theirs(kind: str, head: str = "Model", **options: Any) -> Any:
    """A model of `transformers` with random weights everywhere: what is zero or one would hide errors."""
    name, config, sizes = KINDS[kind]
    model = getattr(transformers, name + head)(config(**sizes | options)).eval()
    generator = torch.Generator().manual_seed(0)
    for parameter_name, parameter in model.named_parameters():
        norm = re.search(r"(?i)layer_?norm\.weight", parameter_name)
        nn.init.normal_(parameter, mean=1.0 if norm else 0.0, std=0.3, generator=generator)
    return model.requires_grad_(False)


def saved(model: Any, folder: Path, **options: Any) -> Path:
    model.save_pretrained(folder, **options)
    return folder


def inputs(kind: str, side: str, pad_ids: bool = True) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    mask = torch.tensor(MASKS[side])
    ids = torch.randint(2, 101, (ROWS, LENGTH), generator=generator)
    feeds = {"input_ids": ids.where(mask == 1, PAD) if pad_ids else ids, "attention_mask": mask}
    if kind != "distilbert":
        feeds["token_type_ids"] = torch.randint(0, 2, (ROWS, LENGTH), generator=generator)
    return feeds


def assert_close(have: Tensor, want: Tensor, atol: float = 1e-9) -> None:
    assert want.std() > 0.05  # an answer that hardly varies would prove little
    torch.testing.assert_close(have, want, atol=atol, rtol=0)


def mean(hidden: Tensor, mask: Tensor) -> Tensor:
    return torch.stack([row[real == 1].mean(0) for row, real in zip(hidden, mask, strict=True)])


def unit(x: Tensor) -> Tensor:
    return x / x.square().sum(1, keepdim=True).sqrt()


def read_model(path: Path, task: str | None = None, **options: Any) -> nn.Module:
    return checkpoints.read(path, task).model(**options).double().requires_grad_(False)


def run(model: Any, feeds: dict[str, Tensor]) -> Any:
    """In float64, where two ways to compute the same thing differ by nothing that hides an error."""
    return copy.deepcopy(model).double()(**feeds)


def assert_same_logits(model: Any, path: Path, kind: str, side: str = "right", task: str | None = None) -> None:
    feeds = inputs(kind, side)
    want = run(model, feeds)
    logits = want.prediction_logits if hasattr(want, "prediction_logits") else want.logits
    have = read_model(path, task)(**feeds)
    assert list(have) == ["logits"]
    assert_close(have["logits"], logits)


def assert_same_hidden(model: Any, path: Path, kind: str, side: str = "right", task: str | None = None) -> None:
    """`model` is the body of theirs; the embedding is the normalised mean unless the folder says otherwise."""
    feeds = inputs(kind, side)
    want, have = run(model, feeds), read_model(path, task)(**feeds)
    names = ["last_hidden_state", "sentence_embedding"]
    pooled = want.get("pooler_output")
    assert list(have) == names + (["pooler_output"] if pooled is not None else [])
    assert_close(have["last_hidden_state"], want.last_hidden_state)
    assert_close(have["sentence_embedding"], unit(mean(want.last_hidden_state, feeds["attention_mask"])))
    if pooled is not None:
        assert_close(have["pooler_output"], pooled)


def edit(folder: Path, **settings: Any) -> Path:
    """config.json with other settings; None removes one."""
    file = folder / "config.json"
    config = json.loads(file.read_text()) | settings
    file.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))
    return folder


def rewrite(folder: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> Path:
    file = folder / "model.safetensors"
    save_file(change(load_file(file)), file)
    return folder


def refusal(path: Path, task: str | None = None) -> str:
    with pytest.raises(CheckpointError) as error:
        checkpoints.read(path, task)
    message = str(error.value)
    assert message
    assert "\n" not in message
    return message


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Any, Path]]:
    """Each kind with each head, and the folder that it was saved to; tests only read them."""
    root = tmp_path_factory.mktemp("originals")
    heads = [(kind, head) for kind in KINDS for head in ("Model", "ForMaskedLM", "ForSequenceClassification")]
    models = {
        kind + head: theirs(kind, head, **({"num_labels": 5} if head == "ForSequenceClassification" else {}))
        for kind, head in [*heads, ("bert", "ForPreTraining")]
    }
    return {name: (model, saved(model, root / name)) for name, model in models.items()}


@pytest.fixture
def bert(tmp_path: Path) -> Path:
    return saved(theirs("bert", num_hidden_layers=1), tmp_path / "bert")


# the answers of transformers


@pytest.mark.parametrize("side", MASKS)
@pytest.mark.parametrize("kind", KINDS)
def test_hidden_states_and_pooler(originals, kind, side):
    model, path = originals[kind + "Model"]
    assert_same_hidden(model, path, kind, side)
    assert checkpoints.read(path).config.pooler == (kind != "distilbert")


@pytest.mark.parametrize("side", MASKS)
@pytest.mark.parametrize("head", ["ForMaskedLM", "ForSequenceClassification"])
@pytest.mark.parametrize("kind", KINDS)
def test_logits(originals, kind, head, side):
    model, path = originals[kind + head]
    assert_same_logits(model, path, kind, side)


@pytest.mark.parametrize("kind", KINDS)
def test_words_instead_of_padding_under_the_mask(originals, kind):
    model, path = originals[kind + "Model"]
    for side in ("right", "left", "holes"):
        feeds = inputs(kind, side, pad_ids=False)
        assert_close(read_model(path)(**feeds)["last_hidden_state"], run(model, feeds).last_hidden_state)


@pytest.mark.parametrize("kind", KINDS)
def test_token_types_left_out_are_those_that_transformers_takes(originals, kind):
    model, path = originals[kind + "Model"]
    feeds = inputs(kind, "right")
    feeds.pop("token_type_ids", None)
    assert_close(read_model(path)(**feeds)["last_hidden_state"], run(model, feeds).last_hidden_state)


def test_one_token_type_as_roberta_has(tmp_path):
    model = theirs("roberta", type_vocab_size=1)
    path = saved(model, tmp_path)
    feeds = inputs("roberta", "right")
    del feeds["token_type_ids"]
    assert checkpoints.read(path).config.num_token_types == 1
    assert_close(read_model(path)(**feeds)["last_hidden_state"], run(model, feeds).last_hidden_state)


@pytest.mark.parametrize("kind", ["bert", "distilbert"])
def test_positions_by_the_mask_make_left_padding_what_the_sequence_is_alone(originals, kind):
    model, path = originals[kind + "Model"]
    feeds = inputs(kind, "left")
    alone = run(model, {name: value[1:2, 4:] for name, value in feeds.items()}).last_hidden_state[0]
    assert_close(read_model(path, position_rule="mask")(**feeds)["last_hidden_state"][1, 4:], alone)
    assert (read_model(path)(**feeds)["last_hidden_state"][1, 4:] - alone).abs().max() > 1e-2


@pytest.mark.parametrize("name", ["gelu", "gelu_python", "gelu_new", "gelu_pytorch_tanh", "relu", "silu", "swish"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_activation_in_layers_and_head(tmp_path, kind, name):
    options = {"activation": name} if kind == "distilbert" else {"hidden_act": name}
    model = theirs(kind, "ForMaskedLM", **options)
    assert_same_logits(model, saved(model, tmp_path), kind)


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_the_epsilon_of_the_norms(tmp_path, kind):
    model = theirs(kind, "ForMaskedLM", layer_norm_eps=0.25)
    assert_same_logits(model, saved(model, tmp_path), kind)


@pytest.mark.parametrize("pad", [0, 5])
def test_roberta_counts_from_behind_its_padding_token(tmp_path, pad):
    model = theirs("roberta", pad_token_id=pad)
    feeds = inputs("roberta", "right", pad_ids=False)
    feeds["input_ids"] = feeds["input_ids"].where(feeds["attention_mask"] == 1, pad)
    path = saved(model, tmp_path)
    assert checkpoints.read(path).config.max_length == 41 - pad - 1
    assert_close(read_model(path)(**feeds)["last_hidden_state"], run(model, feeds).last_hidden_state)


def test_positions_that_distilbert_did_not_train(tmp_path):
    model = theirs("distilbert", sinusoidal_pos_embds=True)
    assert_same_hidden(model, saved(model, tmp_path), "distilbert")


# heads


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("options", "labels", "problem"),
    [
        ({}, ("LABEL_0", "LABEL_1"), "single_label"),
        ({"id2label": LABELS}, tuple(LABELS.values()), "single_label"),
        ({"id2label": LABELS, "problem_type": "multi_label_classification"}, tuple(LABELS.values()), "multi_label"),
        ({"num_labels": 1}, ("LABEL_0",), "regression"),
        ({"num_labels": 1, "problem_type": "regression"}, ("LABEL_0",), "regression"),
        ({"num_labels": 3, "problem_type": "regression"}, ("LABEL_0", "LABEL_1", "LABEL_2"), "regression"),
        ({"num_labels": 2, "problem_type": "single_label_classification"}, ("LABEL_0", "LABEL_1"), "single_label"),
    ],
    ids=["two", "five", "several", "number", "regression", "numbers", "single"],
)
def test_classes_and_problem(tmp_path, kind, options, labels, problem):
    model = theirs(kind, "ForSequenceClassification", **options)
    config = checkpoints.read(saved(model, tmp_path)).config
    assert (config.task, config.labels, config.problem) == ("classify", labels, problem)
    assert_same_logits(model, tmp_path, kind)


def test_classes_are_ordered_by_number(tmp_path):
    names = {i: f"class {i}" for i in range(11)}
    path = saved(theirs("bert", "ForSequenceClassification", id2label=names), tmp_path)
    edit(path, id2label={str(i): names[i] for i in (10, 9, 2, 1, 0, 3, 4, 5, 6, 7, 8)})
    assert checkpoints.read(path).config.labels == tuple(names.values())


@pytest.mark.parametrize("kind", KINDS)
def test_a_decoder_is_tied_where_the_configuration_does_not_say(tmp_path, kind):
    model = theirs(kind, "ForMaskedLM")
    path = edit(saved(model, tmp_path), tie_word_embeddings=None)
    assert checkpoints.read(path).config.tied_decoder
    assert_same_logits(model, path, kind)


@pytest.mark.parametrize("kind", KINDS)
def test_an_untied_decoder(tmp_path, kind):
    model = theirs(kind, "ForMaskedLM", tie_word_embeddings=False)
    path = saved(model, tmp_path)
    assert not checkpoints.read(path).config.tied_decoder
    assert_same_logits(model, path, kind)


@pytest.mark.parametrize(
    ("kind", "bias"), [("bert", "cls.predictions.decoder.bias"), ("roberta", "lm_head.decoder.bias")]
)
def test_an_untied_decoder_of_older_files_with_one_bias(tmp_path, kind, bias):
    model = theirs(kind, "ForMaskedLM", tie_word_embeddings=False)
    head = model.cls.predictions if kind == "bert" else model.lm_head
    head.decoder.bias.copy_(head.bias)
    path = rewrite(saved(model, tmp_path), lambda tensors: {n: t for n, t in tensors.items() if n != bias})
    assert_same_logits(model, path, kind)


@pytest.mark.parametrize("kind", KINDS)
def test_a_decoder_that_the_file_has_beside_the_table_that_it_is_tied_to(tmp_path, kind):
    decoder = {"bert": "cls.predictions.decoder", "roberta": "lm_head.decoder", "distilbert": "vocab_projector"}[kind]
    path = saved(theirs(kind, "ForMaskedLM"), tmp_path)
    tensors = load_file(path / "model.safetensors")
    table = tensors[f"{kind}.embeddings.word_embeddings.weight"]

    save_file(tensors | {f"{decoder}.weight": table.clone()}, path / "model.safetensors", {"format": "pt"})
    name = KINDS[kind][0] + "ForMaskedLM"
    equal = getattr(transformers, name).from_pretrained(path, attn_implementation="eager").requires_grad_(False)
    assert_same_logits(equal, path, kind)

    save_file(tensors | {f"{decoder}.weight": table.flip(0)}, path / "model.safetensors", {"format": "pt"})
    other = getattr(transformers, name).from_pretrained(path, attn_implementation="eager").requires_grad_(False)
    assert_same_logits(other, path, kind)


def test_pre_training_reads_as_masked_words(originals):
    model, path = originals["bertForPreTraining"]
    assert_same_logits(model, path, "bert")
    assert checkpoints.read(path).unused == (
        "bert.pooler.dense.bias",
        "bert.pooler.dense.weight",
        "cls.seq_relationship.bias",
        "cls.seq_relationship.weight",
    )


@pytest.mark.parametrize(
    ("kind", "head"),
    [
        *((kind, head) for kind in KINDS for head in ("ForMaskedLM", "ForSequenceClassification")),
        ("bert", "ForPreTraining"),
    ],
)
def test_the_body_of_another_head_reads_for_embeddings(originals, kind, head):
    model, path = originals[kind + head]
    assert_same_hidden(getattr(model, kind), path, kind, task="embed")


def test_the_classifier_in_front_of_berts_pooler_is_left_unused_for_embeddings(originals):
    _, path = originals["bertForSequenceClassification"]
    assert checkpoints.read(path, "embed").unused == ("classifier.bias", "classifier.weight")
    assert checkpoints.read(path).unused == ()


# files


def test_what_a_checkpoint_tells(originals):
    _, path = originals["robertaModel"]
    checkpoint = checkpoints.read(str(path))
    assert isinstance(checkpoint, Checkpoint)
    assert (checkpoint.family, checkpoint.files, checkpoint.unused) == ("encoder", (path / "config.json",), ())
    assert checkpoint.source == {"name": "robertaModel", "model_type": "roberta", "unused_tensors": []}
    config = checkpoint.config
    assert (config.vocab_size, config.hidden_size, config.num_heads, config.num_layers) == (101, 33, 3, 2)
    assert (config.intermediate_size, config.max_positions, config.num_token_types) == (53, 41, 2)
    assert (config.position_rule, config.pad_token_id, config.norm_order) == ("tokens", 1, "post")


def test_a_model_is_ready_to_run_and_its_options_replace_settings(originals):
    original, path = originals["bertModel"]
    model = checkpoints.read(path).model(dropout=0.5, normalize=False)
    assert not model.training
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    feeds = inputs("bert", "right")
    with torch.no_grad():
        outputs = model(**feeds)
    hidden = original(**feeds).last_hidden_state
    assert hidden.dtype == torch.float32
    assert_close(outputs["last_hidden_state"], hidden, atol=1e-5)
    assert_close(outputs["sentence_embedding"], mean(hidden, feeds["attention_mask"]), atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_weights_of_another_precision(tmp_path, kind, dtype):
    model = theirs(kind, "ForMaskedLM").to(dtype)
    path = saved(model, tmp_path)
    assert load_file(path / "model.safetensors").popitem()[1].dtype == dtype
    assert_same_logits(model.float(), path, kind)


@pytest.mark.parametrize("kind", KINDS)
def test_shards(tmp_path, kind):
    model = theirs(kind, "ForSequenceClassification")
    path = saved(model, tmp_path, max_shard_size="20KB")
    assert len(list(path.glob("*.safetensors"))) > 2
    assert not (path / "model.safetensors").exists()
    assert_same_logits(model, path, kind)


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_norms_under_their_old_names(tmp_path, kind):
    model = theirs(kind, "ForMaskedLM")

    def old(name: str) -> str:
        return name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")

    path = rewrite(saved(model, tmp_path), lambda tensors: {old(name): tensor for name, tensor in tensors.items()})
    assert any("gamma" in name for name in load_file(path / "model.safetensors"))
    assert_same_logits(model, path, kind)


@pytest.mark.parametrize("kind", KINDS)
def test_a_body_saved_under_the_name_of_its_kind(tmp_path, kind):
    model = theirs(kind)
    path = rewrite(saved(model, tmp_path), lambda tensors: {f"{kind}.{n}": tensor for n, tensor in tensors.items()})
    assert_same_hidden(model, path, kind)


def test_buffers_of_older_versions_are_passed_over(tmp_path):
    model = theirs("bert", "ForMaskedLM")
    positions = {"bert.embeddings.position_ids": torch.arange(41)[None]}
    path = rewrite(saved(model, tmp_path), lambda tensors: tensors | positions)
    assert_same_logits(model, path, "bert")
    assert checkpoints.read(path).unused == ()


def test_a_bert_without_a_pooler_has_no_pooler_output(tmp_path):
    model = theirs("bert")
    path = rewrite(saved(model, tmp_path), lambda tensors: {n: t for n, t in tensors.items() if "pooler" not in n})
    assert not checkpoints.read(path).config.pooler
    assert list(read_model(path)(**inputs("bert", "right"))) == ["last_hidden_state", "sentence_embedding"]


def test_without_architectures_the_task_is_embed(bert):
    for names in (None, []):
        assert checkpoints.read(edit(bert, architectures=names)).config.task == "embed"


# recipes of sentence embeddings


def recipe(
    folder: Path, *modes: str, modules: tuple[str, ...] | None = ("Transformer", "Pooling", "Normalize")
) -> Path:
    kinds = ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken")
    pooling: dict[str, Any] = {f"pooling_mode_{mode}": mode in modes for mode in kinds}
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(
        json.dumps(pooling | {"word_embedding_dimension": 33, "include_prompt": True})
    )
    if modules is not None:
        listed = [{"idx": i, "type": f"sentence_transformers.models.{name}"} for i, name in enumerate(modules)]
        (folder / "modules.json").write_text(json.dumps(listed))
    return folder


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", ["mean_tokens", "cls_token"])
@pytest.mark.parametrize("normalize", [True, False])
def test_a_sentence_embedding_follows_its_recipe(tmp_path, kind, mode, normalize):
    model = theirs(kind)
    modules = ("Transformer", "Pooling", "Normalize") if normalize else ("Transformer", "Pooling")
    path = recipe(saved(model, tmp_path), mode, modules=modules)
    for side in ("none", "right"):
        feeds = inputs(kind, side)
        hidden, outputs = run(model, feeds).last_hidden_state, read_model(path)(**feeds)
        pooled = mean(hidden, feeds["attention_mask"]) if mode == "mean_tokens" else hidden[:, 0]
        assert list(outputs) == ["last_hidden_state", "sentence_embedding"]  # the pooler is no part of the recipe
        assert_close(outputs["last_hidden_state"], hidden)
        assert_close(outputs["sentence_embedding"], unit(pooled) if normalize else pooled)


def test_a_recipe_that_lists_no_modules_normalises(tmp_path):
    model = theirs("bert")
    path = recipe(saved(model, tmp_path), "cls_token", modules=None)
    feeds = inputs("bert", "right")
    have = read_model(path)(**feeds)["sentence_embedding"]
    assert_close(have, unit(run(model, feeds).last_hidden_state[:, 0]))


def test_a_recipe_leaves_the_pooler_unused(tmp_path):
    path = recipe(saved(theirs("bert"), tmp_path), "mean_tokens")
    assert checkpoints.read(path).unused == ("pooler.dense.bias", "pooler.dense.weight")


@pytest.mark.parametrize(
    ("modes", "named"),
    [
        (("max_tokens",), "pooling pooling_mode_max_tokens is not supported"),
        (("cls_token", "mean_tokens"), "pooling_mode_cls_token, pooling_mode_mean_tokens is not supported"),
        (("mean_tokens", "lasttoken"), "pooling_mode_lasttoken, pooling_mode_mean_tokens is not supported"),
        ((), "pooling of no kind is not supported"),
    ],
)
def test_another_pooling_is_refused(bert, modes, named):
    message = refusal(recipe(bert, *modes))
    assert named in message
    assert str(bert / "1_Pooling" / "config.json") in message


@pytest.mark.parametrize("name", ["Dense", "LSTM"])
def test_a_recipe_with_another_step_is_refused(bert, name):
    path = recipe(bert, "mean_tokens", modules=("Transformer", "Pooling", name, "Normalize"))
    message = refusal(path)
    assert name in message
    assert str(path / "modules.json") in message


# what cannot be read


def test_a_path_that_is_not_there(tmp_path):
    assert refusal(tmp_path / "nowhere") == f"{tmp_path / 'nowhere'} does not exist"


def test_a_file_that_is_no_checkpoint(tmp_path):
    (tmp_path / "weights.xyz").touch()
    assert f"{tmp_path / 'weights.xyz'} is not a kind of file" in refusal(tmp_path / "weights.xyz")


def test_a_folder_without_configuration(tmp_path):
    assert f"{tmp_path} has no config.json" in refusal(tmp_path)


@pytest.mark.parametrize("content", ['{"model_type": "bert"', "", "[]", "\ufeff{}"])
def test_a_broken_configuration(bert, content):
    (bert / "config.json").write_text(content, encoding="utf-8")
    assert str(bert / "config.json") in refusal(bert)


@pytest.mark.parametrize("kind", ["mamba", 5, ["bert"], None], ids=str)
def test_an_unknown_model_type(bert, kind):
    message = refusal(edit(bert, model_type=kind))
    assert str(bert / "config.json") in message
    assert f"model_type {kind!r} is not supported; there are bart, bert, " in message


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"hidden_act": "mish"}, "activation 'mish' is not one of gelu, "),
        ({"is_decoder": True}, "is_decoder True is not supported"),
        ({"add_cross_attention": True}, "add_cross_attention True is not supported"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type 'relative_key' is not supported"),
        ({"hidden_size": None}, "lacks hidden_size"),
        ({"vocab_size": None, "hidden_act": None}, "lacks hidden_act, vocab_size"),
        ({"max_position_embeddings": None}, "lacks max_position_embeddings"),
        ({"num_attention_heads": 0}, "num_heads is 0; it must be a whole number, at least 1"),
        ({"hidden_size": "33"}, "config.json"),
        ({"hidden_size": 34}, "hidden_size 34 is not a multiple of num_heads 3"),
    ],
    ids=str,
)
def test_settings_that_the_family_cannot_express(bert, settings, named):
    message = refusal(edit(bert, **settings))
    assert named in message
    assert str(bert) in message


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"problem_type": "ranking"}, "problem 'ranking' is not one of"),
        ({"id2label": {"first": "no", "second": "yes"}}, "id2label"),
        ({"id2label": ["no", "yes"]}, "id2label"),
    ],
    ids=str,
)
def test_classes_that_the_family_cannot_express(tmp_path, settings, named):
    path = edit(saved(theirs("bert", "ForSequenceClassification"), tmp_path), **settings)
    message = refusal(path)
    assert named in message
    assert str(path / "config.json") in message


def test_roberta_needs_to_know_its_padding(tmp_path):
    path = edit(saved(theirs("roberta"), tmp_path), pad_token_id=None)
    assert "lacks pad_token_id" in refusal(path)
    assert "leaves no position behind pad 40" in refusal(edit(path, pad_token_id=40))


def test_settings_that_say_nothing_new_are_fine(bert):
    edit(bert, position_embedding_type="absolute", is_decoder=False)
    assert checkpoints.read(bert).config.hidden_size == 33


def test_an_unknown_task(bert):
    assert refusal(bert, "translate") == "task 'translate' is not one of embed, fill-mask, classify"


@pytest.mark.parametrize(
    ("kind", "head"),
    [
        ("bert", "ForTokenClassification"),
        ("bert", "ForQuestionAnswering"),
        ("roberta", "ForTokenClassification"),
        ("distilbert", "ForQuestionAnswering"),
    ],
)
def test_another_head_is_refused_with_an_advice_that_works(tmp_path, kind, head):
    model = theirs(kind, head)
    path = saved(model, tmp_path)
    message = refusal(path)
    assert f"{KINDS[kind][0]}{head} is not supported; name a --task (embed, fill-mask, classify)" in message
    assert_same_hidden(getattr(model, kind), path, kind, task="embed")


@pytest.mark.parametrize("keep", [0, 5, 100, -1])
def test_weights_cut_short(bert, keep):
    file = bert / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    assert f"{file} is not a whole safetensors file" in refusal(bert)


def test_a_pickle_alone(bert):
    os.replace(bert / "model.safetensors", bert / "pytorch_model.bin")
    message = refusal(bert)
    assert f"{bert} has no model.safetensors" in message
    assert "pytorch_model.bin is a pickle and is never opened" in message


def test_no_weights_at_all(bert):
    (bert / "model.safetensors").unlink()
    assert refusal(bert) == f"{bert} has no model.safetensors"


@pytest.mark.parametrize(
    ("kind", "head", "name"),
    [
        ("bert", "ForMaskedLM", "bert.encoder.layer.1.attention.self.key.bias"),
        ("bert", "ForMaskedLM", "cls.predictions.bias"),
        ("bert", "ForMaskedLM", "bert.embeddings.word_embeddings.weight"),
        ("bert", "ForSequenceClassification", "bert.pooler.dense.weight"),
        ("roberta", "ForMaskedLM", "lm_head.layer_norm.bias"),
        ("roberta", "ForSequenceClassification", "classifier.out_proj.weight"),
        ("distilbert", "ForMaskedLM", "distilbert.transformer.layer.0.ffn.lin2.weight"),
    ],
)
def test_a_missing_tensor_is_named_as_in_the_file(tmp_path, kind, head, name):
    path = saved(theirs(kind, head), tmp_path)
    rewrite(path, lambda tensors: {n: tensor for n, tensor in tensors.items() if n != name})
    assert refusal(path) == f"{path} lacks the tensor {name}"


def test_the_head_that_a_checkpoint_does_not_have_is_missing(originals):
    _, path = originals["bertModel"]
    assert "lacks the tensors classifier.bias, classifier.weight" in refusal(path, "classify")
    assert "cls.predictions.transform.dense.weight" in refusal(path, "fill-mask")


@pytest.mark.parametrize(
    "name", ["encoder.layer.0.adapter.weight", "bert.pooler.extra", "encoder.layer.1.output.dense.scale"]
)
def test_an_unknown_tensor_is_named_as_in_the_file(bert, name):
    rewrite(bert, lambda tensors: tensors | {name: torch.ones(3)})
    assert refusal(bert) == f"{bert} has the unknown tensor {name}"


def test_a_tensor_of_another_shape_is_named_with_both_shapes(bert):
    name = "encoder.layer.0.intermediate.dense.weight"
    rewrite(bert, lambda tensors: tensors | {name: tensors[name].T.contiguous()})
    assert refusal(bert) == f"{bert} has the tensor {name} of shape (33, 53) where config.json asks for (53, 33)"


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"num_hidden_layers": 3}, "lacks the tensors encoder.layer.2."),
        ({"num_hidden_layers": 1}, "has the unknown tensors encoder.layer.1."),
        (
            {"intermediate_size": 47},
            "encoder.layer.0.intermediate.dense.bias of shape (53,) where config.json asks for (47,)",
        ),
        (
            {"vocab_size": 97},
            "embeddings.word_embeddings.weight of shape (101, 33) where config.json asks for (97, 33)",
        ),
        ({"num_attention_heads": 11}, ""),
    ],
    ids=str,
)
def test_a_configuration_of_other_weights(tmp_path, settings, named):
    path = edit(saved(theirs("bert"), tmp_path), **settings)
    if named:
        assert named in refusal(path)
    else:  # the number of heads shows in no shape
        assert checkpoints.read(path).config.num_heads == settings["num_attention_heads"]
