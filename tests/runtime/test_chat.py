"""Dialogues: the package's template, the cache between turns, and what cannot be a dialogue."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, processors

from isoformer.runtime import InputError, PackageError, Session
from isoformer.runtime.chat import Chat
from isoformer.runtime.generation import Settings
from isoformer.runtime.package import MANIFEST, sha256
from isoformer.runtime.tasks import generate

from .conftest import CHATML, END, POSITIONS, START

SHORT = Settings(6)


def answer(chat: Chat, text: str) -> str:
    return "".join(chat.say(text))


def rendered(*messages: tuple[str, str]) -> str:
    """The dialogue as CHATML writes it, up to the next answer."""
    return "".join(f"{START}{role}\n{text}{END}\n" for role, text in messages) + f"{START}assistant\n"


def with_template(
    package: Path,
    target: Path,
    config: dict[str, Any] | None = None,
    jinja: str | None = None,
    tokenizer: Tokenizer | None = None,
) -> Path:
    """A copy with another tokenizer_config.json, a chat_template.jinja or another tokenizer, signed."""
    shutil.copytree(package, target)
    if config is not None:
        (target / "tokenizer_config.json").write_text(json.dumps(config))
    if jinja is not None:
        (target / "chat_template.jinja").write_text(jinja)
    if tokenizer is not None:
        tokenizer.save(str(target / "tokenizer.json"))
    manifest = json.loads((target / MANIFEST).read_text(encoding="utf-8"))
    names = {*manifest["files"], *(["chat_template.jinja"] if jinja is not None else [])}
    manifest["files"] = {name: sha256(target / name) for name in sorted(names)}
    (target / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")
    return target


@pytest.mark.parametrize("system", [None, "be a fox"])
def test_turns_are_the_whole_dialogue(generator: Session, system: str | None) -> None:
    """Every answer is what the rendered dialogue is continued with when nothing is kept."""
    chat = Chat(generator, system=system, settings=SHORT)
    messages = [] if system is None else [("system", system)]
    for text in ("hello", "was there a fox?", "ça va"):
        messages.append(("user", text))
        (expected,) = generate.run(generator, [rendered(*messages)], settings=SHORT)
        assert answer(chat, text) == expected["text"]
        messages.append(("assistant", expected["text"]))
    assert [(m["role"], m["content"]) for m in chat.messages] == messages


def test_only_what_is_new_is_computed(generator: Session, ids: Callable[[str], list[int]]) -> None:
    chat = Chat(generator, settings=SHORT)
    first = answer(chat, "hello")
    assert (chat.stats.reused_tokens, chat.stats.prompt_tokens) == (0, len(ids(rendered(("user", "hello")))))
    held = chat._decoder.tokens[0]
    answer(chat, "more")
    prompt = ids(rendered(("user", "hello"), ("assistant", first), ("user", "more")))
    shared = next(n for n in range(len(prompt)) if n == len(held) or prompt[n] != held[n])
    assert shared >= len(ids(rendered(("user", "hello"))))  # all but, perhaps, of the answer
    assert (chat.stats.reused_tokens, chat.stats.prompt_tokens) == (shared, len(prompt))


def test_a_template_that_rewrites_what_was_said(generator_package: Path, tmp_path: Path) -> None:
    """The cache is cut back to what both have in common, and the answer is that of the new text."""
    newest = "{% for m in messages %}{{ (m.content | upper if loop.last else m.content) + ' ' }}{% endfor %}"
    session = Session(with_template(generator_package, tmp_path / "copy", jinja=newest))
    chat = Chat(session, settings=SHORT)
    first = answer(chat, "fox")
    (expected,) = generate.run(session, [f"fox {first} TIME "], settings=SHORT)
    assert answer(chat, "time") == expected["text"]
    assert chat.stats.reused_tokens == 0


def test_reset(generator: Session) -> None:
    chat = Chat(generator, system="be a fox", settings=SHORT)
    first = answer(chat, "hello")
    answer(chat, "and then?")
    chat.reset()
    assert chat.messages == [{"role": "system", "content": "be a fox"}]
    assert answer(chat, "hello") == first
    assert chat.stats.reused_tokens == chat.stats.prompt_tokens - 1


def test_too_long_a_dialogue_stays_as_it_was(generator: Session) -> None:
    chat = Chat(generator, settings=SHORT)
    answer(chat, "hello")
    before = list(chat.messages)
    with pytest.raises(InputError, match=f"this model holds {POSITIONS} with the answer: start a new one with /reset"):
        answer(chat, "fox " * 100)
    assert chat.messages == before
    answer(chat, "short")
    assert len(chat.messages) == len(before) + 2


def test_stop_strings_are_not_in_the_dialogue(generator: Session) -> None:
    free = answer(Chat(generator, settings=SHORT), "hello")
    chat = Chat(generator, settings=SHORT, stop=[free[2]])
    said = answer(chat, "hello")
    assert said == free[: free.index(free[2])]
    assert chat.messages[-1]["content"] == said
    (expected,) = generate.run(
        generator, [rendered(("user", "hello"), ("assistant", said), ("user", "x"))], settings=SHORT, stop=[free[2]]
    )
    assert answer(chat, "x") == expected["text"]


@pytest.mark.parametrize(
    "config",
    [
        {"chat_template": [{"name": "tools", "template": "no"}, {"name": "default", "template": CHATML}]},
        {"chat_template": CHATML.replace("'<|im_end|>'", "eos_token"), "eos_token": {"content": END}},
        {"chat_template": "{# a comment #}\n{% if true %}\n" + CHATML + "{% endif %}"},
    ],
)
def test_ways_to_write_a_template(
    generator: Session, generator_package: Path, tmp_path: Path, config: dict[str, Any]
) -> None:
    session = Session(with_template(generator_package, tmp_path / "copy", config))
    chat, expected = Chat(session, settings=SHORT), Chat(generator, settings=SHORT)
    assert answer(chat, "hello") == answer(expected, "hello")
    assert chat._decoder.tokens == expected._decoder.tokens


def test_the_template_alone_writes_special_tokens(generator: Session, generator_package: Path, tmp_path: Path) -> None:
    """Where the tokenizer begins every text with a token, a dialogue has only those that its template writes."""
    tokenizer = Tokenizer.from_file(str(generator_package / "tokenizer.json"))
    tokenizer.post_processor = processors.TemplateProcessing(  # pyright: ignore[reportAttributeAccessIssue]
        single=f"{START} $A", special_tokens=[(START, tokenizer.token_to_id(START))]
    )
    package = with_template(generator_package, tmp_path / "copy", tokenizer=tokenizer)
    chat, expected = Chat(Session(package), settings=SHORT), Chat(generator, settings=SHORT)
    assert answer(chat, "hello") == answer(expected, "hello")
    assert chat._decoder.tokens == expected._decoder.tokens


def test_the_file_comes_first(generator_package: Path, tmp_path: Path) -> None:
    session = Session(with_template(generator_package, tmp_path / "copy", jinja="{{ messages[-1].content }}"))
    (expected,) = generate.run(session, ["hello"], settings=SHORT)
    assert answer(Chat(session, settings=SHORT), "hello") == expected["text"]


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({}, "has no chat template"),
        ({"chat_template": []}, "has no chat template"),
        ({"chat_template": "{% if %}"}, "cannot be read: Expected an expression"),
    ],
)
def test_packages_that_hold_no_dialogue(
    generator_package: Path, tmp_path: Path, config: dict[str, Any], words: str
) -> None:
    session = Session(with_template(generator_package, tmp_path / "copy", config))
    with pytest.raises(PackageError, match=words) as caught:
        Chat(session)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("source", "error", "words"),
    [
        ("{{ raise_exception('roles must\nalternate') }}", InputError, "refuses this dialogue: roles must alternate"),
        ("{{ messages.__class__.__mro__ }}", InputError, "unsafe"),
        ("{{ messages.append(1) }}", InputError, "append"),
        ("{{ 1 / 0 }}", PackageError, "fails: division by zero"),
        ("{{ '' }}", InputError, "has no tokens"),
    ],
)
def test_templates_that_fail(
    generator_package: Path, tmp_path: Path, source: str, error: type[Exception], words: str
) -> None:
    chat = Chat(Session(with_template(generator_package, tmp_path / "copy", jinja=source)))
    with pytest.raises(error, match=words) as caught:
        answer(chat, "hello")
    assert "\n" not in str(caught.value)
    assert chat.messages == []


# ---------------------------------------------------------------------------------------- command line


def test_chat(isoformer: Callable[..., Any], generator: Session, generator_package: Path) -> None:
    lines = "hello\n\nand a fox?\n/reset\nhello\n/exit\nnever\n"
    done = isoformer("chat", generator_package, "--max-tokens", 6, "--stats", stdin=lines)
    chat = Chat(generator, settings=SHORT)
    expected = [answer(chat, "hello"), answer(chat, "and a fox?")]
    assert done.returncode == 0, done.stderr
    assert done.stdout == "".join(f"{text}\n" for text in (*expected, expected[0]))
    stats = done.stderr.splitlines()
    assert len(stats) == 3
    assert " 0 reused" in stats[0]
    assert " 0 reused" not in stats[1]
    assert "(1 computed" in stats[2]


def test_chat_with_a_system_message(isoformer: Callable[..., Any], generator: Session, generator_package: Path) -> None:
    done = isoformer("chat", generator_package, "--system", "be a fox", "--max-tokens", 6, stdin="hello")
    expected = answer(Chat(generator, system="be a fox", settings=SHORT), "hello")
    assert (done.returncode, done.stdout, done.stderr) == (0, expected + "\n", "")


def test_chat_without_a_message(isoformer: Callable[..., Any], generator_package: Path) -> None:
    done = isoformer("chat", generator_package)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize(
    ("arguments", "stdin", "words"),
    [
        ([], "x fox " * 100, "start a new one with /reset"),
        (["--top-p", "2"], "hello", "top_p is 2.0"),
        (["--max-tokens", "0"], "hello", "max_tokens is 0"),
        (["--stop", ""], "hello", "a stop string is empty"),
    ],
)
def test_chat_errors(
    isoformer: Callable[..., Any], generator_package: Path, arguments: list[str], stdin: str, words: str
) -> None:
    done = isoformer("chat", generator_package, *arguments, stdin=stdin)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert words in done.stderr


def test_chat_with_another_package(
    isoformer: Callable[..., Any], tiny_package: Path, generator_package: Path, tmp_path: Path
) -> None:
    done = isoformer("chat", tiny_package, stdin="hello")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "is not a decoder with a cache" in done.stderr
    done = isoformer("chat", with_template(generator_package, tmp_path / "copy", {}), stdin="hello")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "has no chat template" in done.stderr
