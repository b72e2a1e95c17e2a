"""The translation example: .po files, a split without leaks, a tiny model that is trained, resumed and shipped."""

import dataclasses
import io
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
import typer
from matplotlib.image import imread
from rich.console import Console

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # the examples are not installed

from examples import train_translation as example  # noqa: E402
from examples import translation_data as data  # noqa: E402
from examples.training import Training  # noqa: E402
from examples.translation_data import Pair  # noqa: E402
from examples.translation_report import report  # noqa: E402
from tests.conftest import export_small  # noqa: E402

QUIET = Console(file=io.StringIO())
DJANGO = ROOT / ".assets/django"
RECIPE = example.Recipe(tokens=60, rate=3e-3, warmup=5, seed=3)
WORDS = {"red": "rouge", "blue": "bleu", "green": "vert", "cat": "chat", "dog": "chien", "house": "maison", "one": "un"}


@pytest.fixture(scope="module")
def corpus() -> example.Corpus:
    """Sentences of two words, put in the other order in French."""
    pairs = [Pair(f"{a} {b}", f"{WORDS[b]} {WORDS[a]}") for a in WORDS for b in WORDS]
    training, held_out = data.split(pairs, share=0.2)
    return example.Corpus(training, held_out, data.train_tokenizer(training, 300))


def tiny(corpus: example.Corpus) -> Training:
    config = example.configuration(
        corpus.tokenizer.get_vocab_size(), hidden_size=24, num_heads=3, num_layers=1, intermediate_size=40
    )
    return example.new_training(dataclasses.replace(config, max_positions=32), RECIPE, corpus)


def trained(corpus: example.Corpus, folder: Path, epochs: int, minutes: float = 9) -> Training:
    training = tiny(corpus)
    training.start(folder)
    training.run(folder, QUIET, rounds=epochs, minutes=minutes)
    return training


@pytest.mark.parametrize(
    ("text", "pairs"),
    [
        ('msgid "a"\nmsgstr "b"', [("a", "b")]),
        ('msgid "a"\nmsgstr "b"\nmsgid "c"\nmsgstr "d"\n', [("a", "b"), ("c", "d")]),  # nothing between the two
        ('msgid ""\n"one "\n"two"\nmsgstr ""\n"un "\n"deux"\n', [("one two", "un deux")]),
        (r'msgid "a \"b\"\n\t\\n"' + '\nmsgstr "«\xa0é\xa0»"', [('a "b"\n\t\\n', "«\xa0é\xa0»")]),
        ('msgid ""\nmsgstr "Language: fr\\n"\n\nmsgid "a"\nmsgstr "b"', [("a", "b")]),  # the header
        ('#, fuzzy\nmsgid "a"\nmsgstr "b"\n\n#, python-format\nmsgid "%s c"\nmsgstr "d %s"', [("%s c", "d %s")]),
        ('#, python-format, fuzzy\n#| msgid "x"\nmsgid "a"\nmsgstr "b"', []),
        ('msgid "a"\nmsgstr "b"\n\n#, fuzzy\nmsgid "c"\nmsgstr "d"', [("a", "b")]),
        ('msgid "a"\nmsgstr ""', []),
        ('msgctxt "month"\nmsgid "May"\nmsgstr "mai"', [("May", "mai")]),
        (
            'msgid "%d day"\nmsgid_plural "%d "\n"days"\nmsgstr[0] "%d jour"\nmsgstr[1] "%d "\n"jours"',
            [("%d day", "%d jour")],
        ),
        ('#~ msgid "old"\n#~ msgstr "vieux"', []),
        ("", []),
    ],
)
def test_po_entries(text: str, pairs: list[tuple[str, str]]):
    assert data.parse_po(text) == pairs


@pytest.mark.parametrize(
    ("text", "line"), [('"a"', "line 1"), ('msgid "a"\nmsgstr b', "line 2"), ('msgid "a\\q"\nmsgstr "b"', "line 1")]
)
def test_a_file_that_is_not_of_the_format_is_refused(text: str, line: str):
    with pytest.raises(ValueError, match=line):
        data.parse_po(text)


def test_pairs_of_files_are_cleaned_and_the_first_translation_stays(tmp_path: Path):
    for name, text in {
        "a": 'msgid " yes "\nmsgstr "oui"\nmsgid "  "\nmsgstr "x"',
        "b": 'msgid "yes"\nmsgstr "si"\nmsgid "' + "x" * 201 + '"\nmsgstr "y"\nmsgid "no"\nmsgstr "non"',
    }.items():
        folder = tmp_path / name / "locale/fr/LC_MESSAGES"
        folder.mkdir(parents=True)
        (folder / "django.po").write_text(text, encoding="utf-8")
    assert data.read_pairs(tmp_path) == [("yes", "oui"), ("no", "non")]


def test_without_the_files_one_line_says_what_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(typer.Exit) as stopped:
        example.main(tmp_path / "out", pairs=tmp_path)
    said = capsys.readouterr().err
    assert stopped.value.exit_code == 2
    assert said.count("\n") == 1
    assert said.startswith("error: ")
    assert "make assets" in said
    assert not list(tmp_path.iterdir())


def test_no_sentence_is_on_both_sides():
    pairs = data.read_pairs(DJANGO)
    training, held_out = data.split(pairs)
    assert Counter(training + held_out) == Counter(pairs)
    assert len({pair.source for pair in pairs}) == len(pairs) > 700
    assert {data.key(pair.source) for pair in training}.isdisjoint(data.key(pair.source) for pair in held_out)
    assert 0.07 < len(held_out) / len(pairs) < 0.13
    assert data.split(pairs) == (training, held_out)
    assert data.split(reversed(pairs))[1] == held_out[::-1]  # what else there is does not matter
    assert data.split(pairs, seed=1)[1] != held_out


def test_likes_stay_together():
    likes = [Pair(text, "x") for text in ("Password:", "password", "PASSWORD ")]
    assert sorted(map(len, data.split(likes, share=0.5))) == [0, 3]
    assert data.key("…") == "…"


def test_the_tokenizer_gives_back_every_text():
    pairs = data.read_pairs(DJANGO)
    tokenizer = data.train_tokenizer(data.split(pairs)[0], 1000)
    assert tokenizer.get_vocab_size() == 1000
    strange = ["", " a  b ", "日本語 🙂", "tab\tline\n\n", "%(name)s «\xa0été\xa0»", "e\u0301"]
    for text in [text for pair in pairs for text in pair] + strange:
        ids = tokenizer.encode(text).ids
        assert tokenizer.decode(ids) == text
        assert ids[-1] == data.EOS_ID
        assert data.PAD_ID not in ids
    assert [tokenizer.token_to_id(piece) for piece in (data.PAD, data.EOS)] == [data.PAD_ID, data.EOS_ID]


def test_batches_hold_every_pair_once_and_show_the_target_one_step_late():
    encoded = [([5] * (n % 4 + 1) + [1], [7] * n + [1]) for n in range(1, 14)]
    for generator in (None, torch.Generator().manual_seed(1)):
        made = list(data.batches(encoded, 20, generator))
        seen = Counter(tuple(row[row != 0].tolist()) for batch in made for row in batch.target)
        assert seen == Counter(tuple(target) for _, target in encoded)
        for batch in made:
            assert len(batch.target) == 1 or batch.target.numel() <= 20
            assert (batch.decoder_input[:, 0] == data.PAD_ID).all()
            assert torch.equal(batch.decoder_input[:, 1:], batch.target[:, :-1])
            assert torch.equal(batch.source_mask, (batch.source != 0).long())


def test_padding_does_not_change_the_loss(corpus: example.Corpus):
    model = tiny(corpus).model.eval().requires_grad_(False)
    encoded = [([9, 5, 1], [4, 1]), ([6, 1], [8, 7, 5, 6, 1])]
    together = example.losses(model, data.collate(encoded))
    apart = [example.losses(model, data.collate([one])) for one in encoded]
    for whole, *parts in zip(together, *apart, strict=True):
        assert float(whole) == pytest.approx(sum(float(part) for part in parts), rel=1e-5)
    assert together[2] == 7


def test_resumed_training_is_the_very_same(corpus: example.Corpus, tmp_path: Path):
    whole = trained(corpus, tmp_path / "whole", 4)
    trained(corpus, tmp_path, 2)
    torch.manual_seed(99)  # another process
    second = tiny(corpus)
    second.start(tmp_path, resume=True)
    assert second.rounds == 2
    second.run(tmp_path, QUIET, rounds=4, minutes=9)
    assert second.curves == whole.curves
    losses = second.curves["training, with dropout"]
    assert losses[-1] < losses[0]
    for name, weight in whole.model.state_dict().items():
        assert torch.equal(second.model.state_dict()[name], weight), name
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint.pt", "loss.png", "whole"]
    assert imread(tmp_path / "loss.png").shape == (480, 840, 4)


def test_minutes_end_the_training(corpus: example.Corpus, tmp_path: Path):
    assert trained(corpus, tmp_path, 4, minutes=0).rounds == 0
    tiny(corpus).start(tmp_path, resume=True)  # usable all the same


def test_a_checkpoint_of_other_settings_is_refused(corpus: example.Corpus, tmp_path: Path):
    tiny(corpus).save(tmp_path / "checkpoint.pt")
    fewer = dataclasses.replace(corpus, training=corpus.training[1:])
    with pytest.raises(ValueError, match="other settings or other data"):
        tiny(fewer).load(tmp_path / "checkpoint.pt")


@pytest.mark.parametrize(("content", "says"), [(None, "not there"), (b"", "whole checkpoint"), (b"PK", "whole checkp")])
def test_a_checkpoint_that_cannot_be_read_is_one_line(
    corpus: example.Corpus, tmp_path: Path, content: bytes | None, says: str
):
    file = tmp_path / "checkpoint.pt"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ValueError, match=rf"checkpoint\.pt is.*{says}.*: start without --resume$") as caught:
        tiny(corpus).load(file)
    assert "\n" not in str(caught.value)


def test_half_a_checkpoint_is_not_read(corpus: example.Corpus, tmp_path: Path):
    file, training = tmp_path / "checkpoint.pt", tiny(corpus)
    training.save(file)
    whole = file.read_bytes()
    for kept in (len(whole) // 2, len(whole) - 8):
        file.write_bytes(whole[:kept])
        with pytest.raises(ValueError, match="is not a whole checkpoint"):
            training.load(file)


def test_a_file_that_is_refused_is_named(tmp_path: Path):
    file = tmp_path / "locale/fr/LC_MESSAGES/django.po"
    file.parent.mkdir(parents=True)
    file.write_text("msgid b")
    with pytest.raises(ValueError, match=r"django\.po: line 1 is not of a \.po file"):
        data.read_pairs(tmp_path)


def test_from_pairs_to_a_package_that_says_the_same(
    corpus: example.Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("examples.common.export", export_small)
    training, said = trained(corpus, tmp_path, 8), Console(file=io.StringIO(), width=120)
    losses = training.curves["training, with dropout"]
    assert losses[-1] < 0.7 * losses[0]
    example.ship(training, corpus, tmp_path / "package", said)
    rows = report(tmp_path / "package", training.model, corpus.training, corpus.held_out, corpus.tokenizer, said)
    plain, greedy, beams, *_ = rows
    assert greedy.tokens == plain.tokens
    assert greedy.texts == plain.texts
    assert len(beams.texts) == len(corpus.held_out) > 5
    assert "A small model's quality" in said.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]


def test_ctrl_c_leaves_a_checkpoint_and_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Training, "round", interrupted)
    with pytest.raises(typer.Exit) as stopped:
        example.main(tmp_path / "package", pairs=DJANGO)
    said = capsys.readouterr().err
    assert stopped.value.exit_code == 130
    assert said.count("\n") == 1
    assert "--resume" in said
    assert "model" in torch.load(tmp_path / "package-training/checkpoint.pt", weights_only=True)
