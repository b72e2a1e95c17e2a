"""Generation with a small package: steps behind the cache, settings, streams of text, the command line."""

import json
import math
import shutil
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models

from isoformer.runtime import InputError, PackageError, Session
from isoformer.runtime.binding import Decoder, PlainCache
from isoformer.runtime.detokenizer import Detokenizer, eos_tokens
from isoformer.runtime.generation import Settings, Stats, generate, stream
from isoformer.runtime.tasks import generate as task
from isoformer.runtime.text import text_encoder

from .conftest import POSITIONS, byte_tokenizer

Ids = Callable[[str], list[int]]
TEXTS = ["once upon", "there was a fox", "a", "upon a time there was once", "fox", "was", "x y z", "time upon a", "où"]


def whole(session: Session, tokens: list[int]) -> np.ndarray:
    """The logits (L, vocabulary) at every place of one sequence, in one pass without a cache."""
    arrays: dict[str, np.ndarray] = {
        "input_ids": np.array([tokens]),
        "attention_mask": np.ones((1, len(tokens)), np.int64),
        "position_ids": np.arange(len(tokens))[None],
        "logits_positions": np.arange(len(tokens))[None],
    }
    for spec in session.signature.inputs[4:]:
        arrays[spec.name] = np.zeros((1, int(spec.axes[1]), 0, int(spec.axes[3])), spec.dtype)
    return Session(session.package).run(arrays, ["logits"])["logits"][0]


def bound(session: Session) -> float:
    return session.package.manifest["tolerances"]["logits"]["absolute"]


# ----------------------------------------------------------------------------------------------- steps


def test_prefill_and_steps_are_the_full_pass(generator: Session) -> None:
    """Rows of different lengths, in every step; the window of 9 is shorter than all but the first."""
    rng = np.random.default_rng(7)
    rows = [rng.integers(0, 250, length).tolist() for length in (31, 42, 53)]
    started = [1, 13, 30]
    full = [whole(generator, row) for row in rows]
    decoder = Decoder(generator)
    logits, reused = decoder.start([row[:n] for row, n in zip(rows, started, strict=True)])
    assert reused == 0
    for step in range(23):
        for row, n in enumerate(started):
            np.testing.assert_allclose(logits[row], full[row][n + step - 1], rtol=0, atol=bound(generator))
        assert decoder.length == 30 + step
        logits = decoder.append([[row[n + step]] for row, n in zip(rows, started, strict=True)])
    assert decoder.tokens == [row[: n + 23] for row, n in zip(rows, started, strict=True)]


def test_rows_that_are_taken(generator: Session, ids: Ids) -> None:
    """In another order, twice, and with less padding: the next step is that of each row's own tokens."""
    prompts = [ids("once"), ids("there was a time upon a fox"), ids("a fox")]
    decoder = Decoder(generator)
    decoder.start(prompts)
    decoder.take([2, 0, 2])
    assert decoder.tokens == [prompts[2], prompts[0], prompts[2]]
    assert decoder.length == max(len(prompts[0]), len(prompts[2]))
    logits = decoder.append([[5], [7], [11]])
    for row, tokens in enumerate(([*prompts[2], 5], [*prompts[0], 7], [*prompts[2], 11])):
        np.testing.assert_allclose(logits[row], whole(generator, tokens)[-1], rtol=0, atol=bound(generator))


def test_beams_that_part_late_keep_what_they_share(generator: Session) -> None:
    """In another order, and twice: at each step every row is what its own tokens make it."""
    rng = np.random.default_rng(3)
    decoder, stem = Decoder(generator), rng.integers(0, 250, 17).tolist()
    decoder.start([stem, stem, stem])
    for taken in ([0, 1, 2], [2, 0, 0], [1, 1, 0], [0, 2, 1], [2, 2, 2], [1, 0, 2]):
        decoder.take(taken)
        logits = decoder.append(rng.integers(0, 250, (3, 1)).tolist())
        for row, tokens in enumerate(decoder.tokens):
            np.testing.assert_allclose(logits[row], whole(generator, tokens)[-1], rtol=0, atol=bound(generator))
    assert len({tuple(tokens) for tokens in decoder.tokens}) == 3


def test_a_prompt_that_begins_as_the_cache_does(generator: Session, ids: Ids) -> None:
    first, second = ids("once upon a time there was"), ids("once upon a fox there")
    shared = next(i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b)
    decoder = Decoder(generator)
    for prompt, expected in (
        (first, 0),
        (second, shared),
        (second, len(second) - 1),
        (second[:2], 1),
        ([3, *first], 0),
        ([3, *first, 4], len(first) + 1),
    ):
        logits, reused = decoder.start([prompt])
        assert reused == expected
        assert decoder.tokens == [prompt]
        np.testing.assert_allclose(logits[0], whole(generator, prompt)[-1], rtol=0, atol=bound(generator))


def test_the_cache_stays_with_onnx_runtime(generator: Session, ids: Ids, monkeypatch: pytest.MonkeyPatch) -> None:
    """No step brings keys or values to numpy: a step while all rows go on never asks for them."""
    monkeypatch.setattr(PlainCache, "_to_numpy", None)
    prompts = [ids("once upon"), ids("a")]
    assert [len(new) for new in generate(generator, prompts, Settings(5))] == [5, 5]


def test_uneven_steps(generator: Session, ids: Ids) -> None:
    decoder = Decoder(generator)
    decoder.start([ids("once"), ids("a")])
    with pytest.raises(InputError, match=r"sequences get \[1, 2\] new tokens"):
        decoder.append([[1], [1, 2]])
    with pytest.raises(InputError, match="new tokens for 1 sequences; there are 2"):
        decoder.append([[1]])


def test_a_package_without_a_cache(tiny_package: Path) -> None:
    with pytest.raises(PackageError, match="is not a decoder with a cache"):
        generate(Session(tiny_package), [[1]])


# ---------------------------------------------------------------------------------------------- tokens


def test_greedy_takes_the_largest(generator: Session, ids: Ids) -> None:
    prompt = ids("once upon")
    (new,) = generate(generator, [prompt], Settings(9))
    logits = whole(generator, prompt + new)
    assert new == logits[len(prompt) - 1 : -1].argmax(1).tolist()


@pytest.mark.parametrize("choice", [{}, {"temperature": 1.5, "seed": 3}, {"top_k": 7, "top_p": 0.9, "seed": 3}])
def test_a_prompt_does_not_depend_on_the_others(generator: Session, ids: Ids, choice: dict[str, Any]) -> None:
    prompts = [ids(text) for text in TEXTS]
    free = generate(generator, prompts, Settings(17, **choice))
    settings = Settings(17, eos=(free[2][5], free[4][9]), **choice)
    together = generate(generator, prompts, settings)
    assert len({len(new) for new in together}) > 1  # some end early
    for number, prompt in enumerate(prompts):
        alone = [token for _, token in stream(Decoder(generator), {number: prompt}, settings)]
        assert together[number] == alone


def test_seeds(generator: Session, ids: Ids) -> None:
    prompts = [ids("once")] * 3
    one, again, other = (generate(generator, prompts, Settings(20, temperature=2.0, seed=s)) for s in (1, 1, 2))
    assert one == again
    assert one != other
    assert len({tuple(new) for new in one}) == 3  # the same prompt has draws of its own each time
    free = [generate(generator, prompts, Settings(20, temperature=2.0)) for _ in range(2)]
    assert free[0] != free[1]


def test_temperature_zero_is_greedy(generator: Session, ids: Ids) -> None:
    prompts = [ids(text) for text in TEXTS]
    assert generate(generator, prompts, Settings(9, temperature=0)) == generate(generator, prompts, Settings(9))
    assert generate(generator, prompts, Settings(9, top_k=1)) == generate(generator, prompts, Settings(9))


def test_filters_hold_in_every_step(generator: Session, ids: Ids) -> None:
    prompt = ids("there was")
    for number in range(5):
        settings = Settings(20, top_k=3, temperature=3.0)
        new = [token for _, token in stream(Decoder(generator), {number: prompt}, settings)]
        ranks = np.argsort(np.argsort(-whole(generator, prompt + new), axis=1), axis=1)
        assert all(ranks[len(prompt) - 1 + i, token] < 3 for i, token in enumerate(new))


@pytest.mark.parametrize("beams", [1, 3])
def test_processors_of_ones_own(generator: Session, ids: Ids, beams: int) -> None:
    """They see the tokens so far and may forbid the next."""
    prompt, seen = ids("once upon"), []

    def never_twice(so_far: Any, logits: np.ndarray) -> np.ndarray:
        seen.append(list(so_far))
        logits = logits.copy()
        logits[list(so_far)] = -np.inf
        return logits

    (new,) = generate(generator, [prompt], Settings(30, processors=(never_twice,), beams=beams))
    assert len(set(prompt + new)) == len(set(prompt)) + 30
    if beams == 1:
        assert seen == [prompt + new[:n] for n in range(30)]


def test_eos_ends_a_sequence_and_stays_in_it(generator: Session, ids: Ids) -> None:
    prompt = ids("once upon")
    (free,) = generate(generator, [prompt], Settings(20))
    end = free[7]
    (new,) = generate(generator, [prompt], Settings(20, eos=(end, 999)))
    assert new == free[: free.index(end) + 1]


@pytest.mark.parametrize("beams", [1, 2])
def test_the_model_s_positions_are_the_end(generator: Session, beams: int) -> None:
    prompts = [[5] * (POSITIONS - 1), [5] * (POSITIONS - 4)]
    found = generate(generator, prompts, Settings(50, beams=beams))
    assert [len(new) for new in found] == [1, 4]


def test_finished_rows_cost_nothing(generator: Session, ids: Ids, monkeypatch: pytest.MonkeyPatch) -> None:
    widths: list[int] = []
    append = Decoder.append

    def counted(self: Decoder, new: Any) -> np.ndarray:
        widths.append(len(new))
        return append(self, new)

    monkeypatch.setattr(Decoder, "append", counted)
    ends = {0: 3, 1: 1, 2: 5}
    found = generate(
        generator, [ids("a"), ids("fox"), ids("was")], Settings(9), ends=lambda number, new: len(new) == ends[number]
    )
    assert [len(new) for new in found] == [3, 1, 5]
    assert widths == [3, 2, 2, 1, 1]


def test_more_prompts_than_a_batch(generator: Session, ids: Ids) -> None:
    prompts, done, stats = [ids(text) for text in TEXTS] * 2, [], Stats()
    found = generate(generator, prompts, Settings(3), stats=stats, progress=done.append)
    assert found == [generate(generator, [prompt], Settings(3))[0] for prompt in prompts]
    assert sum(done) == len(prompts)
    assert stats.prompt_tokens == sum(map(len, prompts))
    assert stats.new_tokens == 3 * len(prompts)
    assert generate(generator, []) == []


def test_beams_find_what_is_likelier(generator: Session, ids: Ids) -> None:
    better = 0
    for text in TEXTS:
        prompt, likelihood = ids(text), []
        for beams in (1, 5):
            (new,) = generate(generator, [prompt], Settings(12, beams=beams))
            logits = whole(generator, prompt + new).astype(np.float64)[len(prompt) - 1 : -1]
            total = np.logaddexp.reduce(logits, axis=1)
            likelihood.append((logits[np.arange(12), new] - total).sum())
        assert likelihood[1] >= likelihood[0] - 1e-4
        better += likelihood[1] > likelihood[0] + 1e-4
    assert better


def test_stats(generator: Session, ids: Ids) -> None:
    decoder, stats, prompt = Decoder(generator), Stats(), ids("once upon a time")
    for _ in range(2):
        list(stream(decoder, {0: prompt}, Settings(4), stats=stats))
    assert (stats.prompt_tokens, stats.reused_tokens) == (2 * len(prompt), len(prompt) - 1)
    assert (stats.new_tokens, stats.steps) == (8, 6)
    assert stats.prefill_ms > 0
    assert stats.decode_ms > 0


@pytest.mark.parametrize(
    ("choice", "words"),
    [
        ({"max_tokens": 0}, "max_tokens is 0; it must be at least 1"),
        ({"max_tokens": -3}, "max_tokens is -3"),
        ({"top_k": 0}, "top_k is 0; it must be at least 1"),
        ({"beams": 0}, "beams is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"temperature": -0.1}, "temperature is -0.1; it must be 0"),
        ({"temperature": math.nan}, "temperature is nan"),
        ({"temperature": math.inf}, "temperature is inf"),
        ({"top_p": 0.0}, "top_p is 0.0; it must be above 0 and at most 1"),
        ({"top_p": 1.1}, "top_p is 1.1"),
        ({"min_p": 1.1}, "min_p is 1.1; it must be from 0 to 1"),
        ({"repetition_penalty": 0.0}, "repetition_penalty is 0.0; it must be a positive number"),
        ({"length_penalty": math.inf}, "length_penalty is inf"),
        ({"beams": 2, "temperature": 1.0}, "beams is 2, and a beam search draws nothing"),
        ({"beams": 2, "top_p": 0.5}, "beams is 2, and a beam search draws nothing"),
    ],
)
def test_settings_out_of_range(choice: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        Settings(**choice)


@pytest.mark.parametrize("beams", [1, 2])
@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ([], "a prompt has no tokens"),
        ([5] * POSITIONS, f"a prompt has {POSITIONS} tokens; this model holds {POSITIONS} with the answer"),
        ([5, -1], "ids from -1 to 5; they go from 0 to"),
        ([5, 10**6], "ids from 5 to 1000000; they go from 0 to"),
    ],
)
def test_bad_prompts(generator: Session, beams: int, prompt: list[int], words: str) -> None:
    with pytest.raises(InputError, match=words):
        generate(generator, [[1, 2], prompt], Settings(beams=beams))


# ------------------------------------------------------------------------------------------------ text

WORDS = "naïve 東京 🦊🦊 e\u0301 \U0001f468\u200d\U0001f469 plain"


def streamed(made: Detokenizer, tokens: list[int]) -> list[str]:
    """What is shown after each token; each begins with the one before."""
    shown = [made.settled(tokens[:n]) for n in range(1, len(tokens) + 1)]
    assert all(later.startswith(earlier) for earlier, later in pairwise(shown))
    return shown


def test_characters_come_whole() -> None:
    tokenizer = byte_tokenizer()
    tokens = tokenizer.encode(WORDS).ids
    assert len(tokens) > len(WORDS) * 1.2  # characters of several tokens
    shown = streamed(Detokenizer(tokenizer), tokens)
    assert shown[-1] == WORDS
    assert all(WORDS.startswith(text) for text in shown)
    assert "\ufffd" in tokenizer.decode(tokens[: len(tokens) // 2 + 1]) + tokenizer.decode(tokens[:3])


def test_bytes_that_are_no_text_appear_at_the_end() -> None:
    tokenizer = byte_tokenizer()
    tokens = tokenizer.encode("a 🦊").ids[:-1]
    made = Detokenizer(tokenizer)
    assert streamed(made, tokens)[-1] == "a "
    assert made.text(tokens) == "a \ufffd"


@pytest.mark.parametrize("split", range(1, 8))
def test_a_prompt_that_ends_anywhere(split: int) -> None:
    """Behind a context that ends within a character, the text begins with that character."""
    tokenizer = byte_tokenizer()
    tokens = tokenizer.encode("é🦊x").ids
    made = Detokenizer(tokenizer, tokens[:split])
    begun = tokenizer.decode(tokens[:split]).rstrip("\ufffd")
    assert begun + made.text(tokens[split:]) == "é🦊x"


def test_spaces_that_belong_to_words() -> None:
    """A tokenizer that writes the space in front of a word drops it at the beginning of a text alone."""
    tokenizer = Tokenizer(models.WordLevel({"▁hello": 0, "▁world": 1, "?": 2}, unk_token="?"))  # noqa: S106
    tokenizer.decoder = decoders.Metaspace()  # pyright: ignore[reportAttributeAccessIssue]
    assert Detokenizer(tokenizer, [0]).text([1, 0]) == " world hello"
    assert Detokenizer(tokenizer).text([1, 0]) == "world hello"


@pytest.mark.parametrize(
    ("stop", "expected"),
    [
        ([], "once upon a time there was"),
        (["zzz"], "once upon a time there was"),
        (["time"], "once upon a "),
        (["e th"], "once upon a tim"),
        (["there", "time"], "once upon a "),
        (["timex", "was"], "once upon a time there "),
        (["upon a time there", "a t"], "once "),
        (["once"], ""),
        (["was"], "once upon a time there "),
        (["wasp"], "once upon a time there was"),
    ],
)
def test_stop_strings(stop: list[str], expected: str) -> None:
    tokenizer = byte_tokenizer()
    tokens = tokenizer.encode("once upon a time there was").ids
    made = Detokenizer(tokenizer, (), stop)
    assert made.text(tokens) == expected
    assert made.stopped(tokens) == (expected != "once upon a time there was")
    assert all(expected.startswith(text) for text in streamed(made, tokens))


def test_silent_tokens_have_no_text() -> None:
    tokenizer = byte_tokenizer()
    tokens = tokenizer.encode("a fox").ids
    assert Detokenizer(tokenizer, (), (), tokens[-1:]).text(tokens) == tokenizer.decode(tokens[:-1])


def test_an_empty_stop_string(generator: Session) -> None:
    with pytest.raises(InputError, match="a stop string is empty"):
        task.run(generator, ["a"], stop=[""])


def changed(package: Path, target: Path, **files: Any) -> Session:
    """A session of a copy with other JSON files; None takes one away."""
    shutil.copytree(package, target)
    session = Session(target)  # the digests are checked here
    for name, content in files.items():
        (target / f"{name}.json").unlink(missing_ok=True)
        if content is not None:
            (target / f"{name}.json").write_text(content if isinstance(content, str) else json.dumps(content))
    return session


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"generation_config": {"eos_token_id": [3, 4]}}, (3, 4)),
        ({"generation_config": {"eos_token_id": 5}, "config": {"eos_token_id": 6}}, (5,)),
        ({"generation_config": {}, "config": {"eos_token_id": 6}}, (6,)),
        ({"generation_config": None}, (1,)),
        ({"generation_config": "{"}, (1,)),
        ({"generation_config": None, "tokenizer_config": None}, ()),
    ],
)
def test_eos_tokens(generator_package: Path, tmp_path: Path, files: dict[str, Any], expected: tuple[int, ...]) -> None:
    session = changed(generator_package, tmp_path / "copy", **files)
    assert eos_tokens(session.package, text_encoder(session)) == expected


def test_task(generator: Session, ids: Ids) -> None:
    results = task.run(generator, TEXTS, settings=Settings(11))
    assert json.loads(json.dumps(results)) == results
    found = generate(generator, [ids(text) for text in TEXTS], Settings(11, eos=(1,)))
    assert [result["token_ids"] for result in results] == found
    for text, result in zip(TEXTS, results, strict=True):
        assert list(result) == ["input", "text", "token_ids"]
        assert result["input"] == text
        assert "".join(task.stream(generator, text, settings=Settings(11))) == result["text"]


@pytest.mark.parametrize("beams", [1, 3])
def test_stop_strings_end_the_generation(generator: Session, beams: int) -> None:
    (free,) = task.run(generator, ["once upon"], settings=Settings(30, beams=beams))
    stop = free["text"][6:9]
    (result,) = task.run(generator, ["once upon"], settings=Settings(30, beams=beams), stop=[stop])
    assert stop not in result["text"]
    if beams == 1:
        assert len(result["token_ids"]) < 30
        assert free["text"].startswith(result["text"] + stop)


@pytest.mark.parametrize(
    ("texts", "choice", "words"),
    [
        (["a", ""], {}, "'' has no tokens"),
        (["\udcff"], {}, "not Unicode"),
        (["a " * 300], {}, f"this model holds {POSITIONS} with the answer"),
        (["a"], {"truncate": True}, "is not cut"),
    ],
)
def test_texts_that_cannot_be_continued(
    generator: Session, texts: list[str], choice: dict[str, Any], words: str
) -> None:
    with pytest.raises(InputError, match=words) as caught:
        task.run(generator, texts, **choice)
    assert "\n" not in str(caught.value)


# ---------------------------------------------------------------------------------------- command line


def test_run(isoformer: Callable[..., Any], generator: Session, generator_package: Path) -> None:
    (expected,) = task.run(generator, ["once [b]upon[/b]"], settings=Settings(20))
    done = isoformer("run", generator_package, "once [b]upon[/b]", "--max-tokens", 20, "--stats")
    assert (done.returncode, done.stdout) == (0, expected["text"] + "\n")
    assert done.stderr.startswith("prompt ")
    assert "new 20 tokens, prefill " in done.stderr
    assert done.stderr.endswith(" ms a token\n")


def test_run_json(isoformer: Callable[..., Any], generator: Session, generator_package: Path) -> None:
    choice = ["--temperature", 0.8, "--top-k", 9, "--top-p", 0.9, "--min-p", 0.01, "--repetition-penalty", 1.2]
    done = isoformer("run", generator_package, "--json", *choice, "--seed", 5, "--max-tokens", 9, stdin="once\nfox\n")
    assert done.returncode == 0, done.stderr
    settings = Settings(9, temperature=0.8, top_k=9, top_p=0.9, min_p=0.01, repetition_penalty=1.2, seed=5)
    expected = task.run(generator, ["once", "fox"], settings=settings)
    assert [json.loads(line) for line in done.stdout.splitlines()] == expected


def test_run_beams_and_stop(isoformer: Callable[..., Any], generator: Session, generator_package: Path) -> None:
    (expected,) = task.run(generator, ["once"], settings=Settings(9, beams=3), stop=["e", "o"])
    done = isoformer("run", generator_package, "once", "--beams", 3, "--max-tokens", 9, "--stop", "e", "--stop", "o")
    assert (done.returncode, done.stdout, done.stderr) == (0, expected["text"] + "\n", "")


def test_run_several_texts(isoformer: Callable[..., Any], generator: Session, generator_package: Path) -> None:
    done = isoformer("run", generator_package, "[red]once", "fox", "--max-tokens", 5)
    expected = task.run(generator, ["[red]once", "fox"], settings=Settings(5))
    assert done.returncode == 0, done.stderr
    assert "[red]once" in done.stdout
    assert "".join(expected[1]["text"].split()) in "".join(done.stdout.split())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["a", "--top-k", "0"], "top_k is 0"),
        (["a", "--max-tokens", "-1"], "max_tokens is -1"),
        (["a", "--beams", "2", "--temperature", "1"], "draws nothing"),
        (["a", "--truncate"], "is not cut"),
        (["a " * 300], f"holds {POSITIONS} with the answer"),
        ([""], "has no tokens"),
    ],
)
def test_run_errors(isoformer: Callable[..., Any], generator_package: Path, arguments: list[str], words: str) -> None:
    done = isoformer("run", generator_package, *arguments)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert words in done.stderr


@pytest.mark.parametrize("option", [["--top-k", "3"], ["--stop", "x"], ["--stats"], ["--max-tokens", "5"]])
def test_options_of_another_task(isoformer: Callable[..., Any], tiny_package: Path, option: list[str]) -> None:
    done = isoformer("run", tiny_package, "a", *option)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert f"{option[0]}: not for the task embed, which {tiny_package} is for" in done.stderr
