"""Texts to tokens and batches, with a tokenizer whose every id is known."""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from isoformer.runtime import InputError, PackageError, Session
from isoformer.runtime.cost import Cost
from isoformer.runtime.package import MANIFEST, Signature, TensorSpec, sha256
from isoformer.runtime.text import BATCH_SIZE, TextEncoder, run_batches

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "zero", "one", "two", "three", "four"]
PAD, UNK, CLS, SEP, MASK, ZERO, ONE, TWO, THREE, FOUR = range(10)


def tokenizer(words: Sequence[str] = WORDS, *, template: bool = True) -> Tokenizer:
    """One token a word, [CLS] before and [SEP] behind the text."""
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))  # noqa: S106
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue]
    made.add_special_tokens([word for word in words if word.startswith("[")])
    if template:
        made.post_processor = processors.TemplateProcessing(  # pyright: ignore[reportAttributeAccessIssue]
            single="[CLS] $A [SEP]", special_tokens=[("[CLS]", CLS), ("[SEP]", SEP)]
        )
    return made


def put(package: Path, name: str, text: str) -> Path:
    """Writes a file into the package, under its digest."""
    (package / name).write_text(text, encoding="utf-8")
    manifest = json.loads((package / MANIFEST).read_text(encoding="utf-8"))
    manifest["files"][name] = sha256(package / name)
    (package / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")
    return package


@pytest.fixture(scope="module")
def session(tiny_package: Path, tmp_path_factory: pytest.TempPathFactory) -> Session:
    package = Path(shutil.copytree(tiny_package, tmp_path_factory.mktemp("text") / "package"))
    return Session(put(package, "tokenizer.json", tokenizer().to_str()))


@pytest.fixture
def with_files(copy_package: Callable[..., Path]) -> Callable[..., Session]:
    """A function that opens a copy of the package with a tokenizer and, if given, its configuration."""

    def make(made: Tokenizer | str, config: Any = None) -> Session:
        package = put(copy_package(), "tokenizer.json", made if isinstance(made, str) else made.to_str())
        if config is not None:
            put(package, "tokenizer_config.json", config if isinstance(config, str) else json.dumps(config))
        return Session(package)

    return make


def ids(encoder: TextEncoder, text: str) -> list[int]:
    return encoder.encode([text])[0].ids


# ----------------------------------------------------------------------------------------------- encode


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("one two", [CLS, ONE, TWO, SEP]),
        ("  four\tzero\n", [CLS, FOUR, ZERO, SEP]),
        ("five", [CLS, UNK, SEP]),
        ("one [MASK] three", [CLS, ONE, MASK, THREE, SEP]),
        ("", [CLS, SEP]),
    ],
)
def test_encode(session: Session, text: str, wanted: list[int]) -> None:
    assert ids(TextEncoder(session), text) == wanted


def test_the_longest_text_that_fits(session: Session) -> None:
    assert len(ids(TextEncoder(session), "one " * 62)) == 64


def test_too_long(session: Session) -> None:
    with pytest.raises(InputError, match=r"has 65 tokens; this model takes 64 at most.*--truncate") as caught:
        TextEncoder(session).encode(["two", "one\n" * 63])
    assert "\n" not in str(caught.value)
    assert "one" in str(caught.value)


def test_truncate(session: Session) -> None:
    encoder = TextEncoder(session, truncate=True)
    assert ids(encoder, "one " * 200) == [CLS, *[ONE] * 62, SEP]
    assert ids(encoder, "one two") == [CLS, ONE, TWO, SEP]


def test_padding_and_truncation_of_the_file_are_not_used(with_files: Callable[..., Session]) -> None:
    made = tokenizer()
    made.enable_truncation(3)
    made.enable_padding(length=17)
    assert ids(TextEncoder(with_files(made)), "one two three four") == [CLS, ONE, TWO, THREE, FOUR, SEP]


def test_text_without_tokens(with_files: Callable[..., Session]) -> None:
    encoder = TextEncoder(with_files(tokenizer(template=False)))
    assert ids(encoder, "one") == [ONE]
    with pytest.raises(InputError, match="' ' has no tokens"):
        encoder.encode(["one", " "])


@pytest.mark.parametrize("text", ["\udcff", "one \ud800 two"])
def test_text_that_is_no_unicode(session: Session, text: str) -> None:
    """Bytes of a command line or a file that are no UTF-8 come as lone surrogates."""
    with pytest.raises(InputError) as caught:
        TextEncoder(session).encode([text])
    assert "\n" not in str(caught.value)


# ----------------------------------------------------------------------------------------------- inputs


def test_inputs_of_one_batch(session: Session) -> None:
    encoder = TextEncoder(session)
    inputs = encoder.inputs(encoder.encode(["one", "two three four", ""]))
    assert list(inputs) == ["input_ids", "attention_mask", "token_type_ids"]
    assert {value.dtype for value in inputs.values()} == {np.dtype(np.int64)}
    np.testing.assert_array_equal(
        inputs["input_ids"], [[CLS, ONE, SEP, PAD, PAD], [CLS, TWO, THREE, FOUR, SEP], [CLS, SEP, PAD, PAD, PAD]]
    )
    np.testing.assert_array_equal(inputs["attention_mask"], [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [1, 1, 0, 0, 0]])
    np.testing.assert_array_equal(inputs["token_type_ids"], np.zeros((3, 5)))


def test_token_types_are_the_tokenizers(with_files: Callable[..., Session]) -> None:
    made = tokenizer()
    made.post_processor = processors.TemplateProcessing(  # pyright: ignore[reportAttributeAccessIssue]
        single="[CLS] $A:1 [SEP]:1", special_tokens=[("[CLS]", CLS), ("[SEP]", SEP)]
    )
    encoder = TextEncoder(with_files(made))
    inputs = encoder.inputs(encoder.encode(["one", "two three"]))
    np.testing.assert_array_equal(inputs["token_type_ids"], [[0, 1, 1, 0], [0, 1, 1, 1]])


@pytest.mark.parametrize(
    ("config", "pad"),
    [
        (None, PAD),
        ({}, PAD),
        ({"pad_token": "four"}, FOUR),
        ({"pad_token": {"content": "three", "special": True}}, THREE),
        ({"pad_token": "absent"}, PAD),
        ({"pad_token": None}, PAD),
    ],
    ids=str,
)
def test_padding_token(with_files: Callable[..., Session], config: Any, pad: int) -> None:
    assert TextEncoder(with_files(tokenizer(), config)).pad_id == pad


def test_tokenizer_without_a_padding_token(with_files: Callable[..., Session]) -> None:
    words = ["a", "[UNK]", "[CLS]", "[SEP]"]
    encoder = TextEncoder(with_files(tokenizer(words)))
    assert encoder.special("pad", ("[PAD]", "<pad>")) is None
    assert encoder.pad_id == 0


# -------------------------------------------------------------------------- lengths, segments, prefixes


class Stub:
    """A session that is asked for its signature and its package alone."""

    def __init__(self, session: Session, *specs: TensorSpec) -> None:
        old = session.signature
        self.package = session.package
        self.signature = Signature((old.inputs[0], *specs), old.outputs, old.axes, old.padding)


def test_every_kind_of_mask_says_where_the_texts_end(session: Session) -> None:
    batch, length = "batch_size", "sequence_length"
    stub = Stub(
        session,
        TensorSpec("prefix_lengths", "int64", (batch,), kind="prefix", along=length),
        TensorSpec("sequence_lengths", "int64", (batch,), kind="lengths", along=length),
        TensorSpec("segment_ids", "int64", (batch, length), kind="segments"),
        TensorSpec("attention_mask", "int64", (batch, 1, length, length), kind="mask"),
    )
    encoder = TextEncoder(cast(Session, stub))
    inputs = encoder.inputs(encoder.encode(["one", "two three four"]))
    assert list(inputs) == ["input_ids", "prefix_lengths", "sequence_lengths", "segment_ids", "attention_mask"]
    assert {value.dtype for value in inputs.values()} == {np.dtype(np.int64)}
    assert inputs["prefix_lengths"].tolist() == [0, 0]
    assert inputs["sequence_lengths"].tolist() == [3, 5]
    assert inputs["segment_ids"].tolist() == [[1, 1, 1, 0, 0], [1] * 5]
    assert inputs["attention_mask"].shape == (2, 1, 5, 5)
    np.testing.assert_array_equal(inputs["attention_mask"], np.repeat(inputs["segment_ids"][:, None, None], 5, 2))


# ---------------------------------------------------------------------------------------- run_batches


def texts_of_mixed_length(count: int) -> list[str]:
    rng = np.random.default_rng(13)
    return [" ".join(rng.choice(WORDS[5:], rng.integers(0, 23))) for _ in range(count)]


@pytest.mark.parametrize("cost", [Cost(), Cost(call=0), Cost(call=5, pair=1, step=7), Cost(call=9, packed=True)])
def test_every_text_comes_once_with_its_own_row(session: Session, cost: Cost, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "cost", cost)
    texts, encoder = texts_of_mixed_length(37), TextEncoder(session)
    found = {i: (e, row) for i, e, row in run_batches(session, encoder, texts, "sentence_embedding", batch_size=5)}
    assert sorted(found) == list(range(37))
    for index, text in enumerate(texts):
        encoding, row = found[index]
        assert encoding.ids == ids(encoder, text)
        alone = session.run(encoder.inputs([encoding]))["sentence_embedding"][0]
        np.testing.assert_allclose(row, alone, rtol=0, atol=1e-6)


def test_texts_of_like_length_share_a_batch(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes: list[tuple[int, ...]] = []
    run = session.run

    def spy(inputs: dict[str, np.ndarray], outputs: list[str]) -> dict[str, np.ndarray]:
        shapes.append(inputs["input_ids"].shape)
        assert outputs == ["sentence_embedding"]
        return run(inputs, outputs)

    monkeypatch.setattr(session, "run", spy)
    texts = ["one " * count for count in (11, 1, 7, 1, 11, 7, 2)]
    done: list[int] = []
    list(run_batches(session, TextEncoder(session), texts, "sentence_embedding", batch_size=3, progress=done.append))
    assert shapes == [(3, 4), (2, 9), (2, 13)]  # 53 tokens and three runs; full batches would be 64
    assert done == [3, 2, 2]


def test_a_batch_may_be_wider_than_its_texts_but_not_than_the_model_takes(session: Session) -> None:
    encoder = TextEncoder(session)
    encodings = encoder.encode(["one", "one one one"])
    for width, expected in ((int, 5), (lambda _length: 7, 7), (lambda _length: 10**6, encoder.limit)):
        assert encoder.inputs(encodings, width)["attention_mask"].sum(1).tolist() == [3, 5]
        assert encoder.inputs(encodings, width)["input_ids"].shape == (2, expected)


def test_batches_hold_32_texts(session: Session) -> None:
    done: list[int] = []
    encoder = TextEncoder(session)
    list(run_batches(session, encoder, ["one"] * 67, "sentence_embedding", progress=done.append))
    assert done == [BATCH_SIZE, BATCH_SIZE, 3] == [32, 32, 3]


def test_no_texts(session: Session) -> None:
    assert list(run_batches(session, TextEncoder(session), [], "sentence_embedding")) == []


# ------------------------------------------------------------------------------------ broken tokenizers


def test_package_without_a_tokenizer(tiny_package: Path) -> None:
    with pytest.raises(PackageError, match=r"has no tokenizer\.json, so it takes no text"):
        TextEncoder(Session(tiny_package))


@pytest.mark.parametrize("text", ["", "{", "{}", "[]", '{"model": {}}'])
def test_tokenizer_that_cannot_be_read(with_files: Callable[..., Session], text: str) -> None:
    session = with_files(text)
    with pytest.raises(PackageError, match=r"tokenizer\.json") as caught:
        TextEncoder(session)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "7"])
def test_configuration_that_cannot_be_read(with_files: Callable[..., Session], text: str) -> None:
    session = with_files(tokenizer(), text)
    with pytest.raises(PackageError, match=r"tokenizer_config\.json") as caught:
        TextEncoder(session)
    assert "\n" not in str(caught.value)


def test_tokenizer_of_another_model(with_files: Callable[..., Session]) -> None:
    """Its ids go beyond the model's vocabulary of 101: said before the graph sees them."""
    words = [*WORDS, *(f"w{i}" for i in range(200))]
    session = with_files(tokenizer(words))
    encoder = TextEncoder(session)
    with pytest.raises(InputError, match="input_ids holds values from"):
        list(run_batches(session, encoder, ["w150"], "sentence_embedding"))
