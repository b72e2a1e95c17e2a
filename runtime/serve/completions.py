"""The completions and chat-completions form of generation: what a client may ask for, and the answers.

One generation at a time, in a thread of its own; the others wait in a queue (docs/decisions/serving.md). A client
that goes away stops its own. https://platform.openai.com/docs/api-reference/chat
"""

import asyncio
import json
import queue
import secrets
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from isoformer.runtime.binding import Decoder
from isoformer.runtime.chat import render, template
from isoformer.runtime.detokenizer import Detokenizer
from isoformer.runtime.errors import InputError, IsoformerError, PackageError
from isoformer.runtime.generation import Settings, Stats
from isoformer.runtime.serve.limits import Limits, RefusedError, busy, timed_out
from isoformer.runtime.session import Session
from isoformer.runtime.tasks.generate import encode, pieces, with_eos
from isoformer.runtime.text import text_encoder

MAX_STOPS = 16
MAX_MESSAGES = 1000
# Options of the form that would change the answer and are not offered here, each with the value that changes nothing;
# so do null, 0, false and what is empty.
NOT_OFFERED: dict[str, Any] = {"n": 1, "best_of": 1, "response_format": {"type": "text"}}
NOT_OFFERED |= dict.fromkeys(("echo", "suffix", "logprobs", "top_logprobs", "logit_bias", "presence_penalty"))
NOT_OFFERED |= dict.fromkeys(("frequency_penalty", "tools", "functions", "audio"))


@dataclass(frozen=True)
class Wanted:
    """What a request asks for. usage: at the end of a stream, too."""

    prompt: Sequence[int]
    context: Sequence[int]  # tokens that the text of the answer is a continuation of
    settings: Settings
    stop: tuple[str, ...]
    stream: bool
    usage: bool


@dataclass
class Event:
    """A piece of text; `finish` is "stop" or "length" in the last; `error` in place of it."""

    text: str = ""
    finish: str | None = None
    new_tokens: int = 0
    error: Exception | None = None


@dataclass(eq=False)
class Generation:
    """One that waits or runs. `events` is filled from the worker's thread; `cancelled` ends it at the next token."""

    wanted: Wanted
    loop: asyncio.AbstractEventLoop
    events: asyncio.Queue[Event] = field(default_factory=asyncio.Queue)
    cancelled: threading.Event = field(default_factory=threading.Event)
    since: float = field(default_factory=time.monotonic)

    def emit(self, event: Event) -> None:
        try:
            self.loop.call_soon_threadsafe(self.events.put_nowait, event)
        except RuntimeError:  # the loop is closed: nobody listens
            self.cancelled.set()


class Generator:
    """A decoder's session behind a queue. observe: called with the statistics of every generation, ended or stopped."""

    def __init__(
        self, session: Session, limits: Limits, observe: Callable[[Stats, bool], None] = lambda _stats, _stopped: None
    ) -> None:
        self.session, self.limits, self._observe = session, limits, observe
        self.encoder = text_encoder(session)
        self._decoder = Decoder(session)
        try:
            self.template = template(self.encoder)
        except PackageError:
            self.template = None  # completions alone
        self._queue: queue.Queue[Generation | None] = queue.Queue()
        self._seconds = 0.0  # a generation, of the last ones
        self._thread = threading.Thread(target=self._work, name="generator", daemon=True)
        self._thread.start()

    @property
    def depth(self) -> int:
        """Generations that wait."""
        return self._queue.qsize()

    def refuse_busy(self) -> None:
        """Raises RefusedError (429) when the queue is full."""
        if self.depth >= self.limits.queue:
            raise busy(self._seconds * self.depth)

    def submit(self, wanted: Wanted) -> Generation:
        """The generation, which will begin. Raises RefusedError (429) when the queue is full."""
        self.refuse_busy()
        generation = Generation(wanted, asyncio.get_running_loop())
        self._queue.put(generation)
        return generation

    def stop(self) -> None:
        """Returns when everything that was accepted is generated."""
        self._queue.put(None)
        self._thread.join()

    def _work(self) -> None:
        while (generation := self._queue.get()) is not None:
            if generation.cancelled.is_set():
                continue
            start = time.monotonic()
            if start - generation.since > self.limits.timeout:
                generation.emit(Event(error=timed_out(self.limits.timeout)))
                continue
            stats = Stats()
            try:
                self._generate(generation, stats)
            except Exception as error:
                generation.emit(Event(error=error))
            self._observe(stats, generation.cancelled.is_set())
            seconds = time.monotonic() - start
            self._seconds = seconds if not self._seconds else 0.8 * self._seconds + 0.2 * seconds

    def _generate(self, generation: Generation, stats: Stats) -> None:
        wanted, new = generation.wanted, list[int]()
        detokenizer = Detokenizer(self.encoder.tokenizer, wanted.context, wanted.stop, wanted.settings.eos)
        end = time.monotonic() + self.limits.generation_timeout
        stream = pieces(self._decoder, wanted.prompt, detokenizer, wanted.settings, stats, new)
        for piece in stream:
            if generation.cancelled.is_set():
                return
            if time.monotonic() > end:
                raise timed_out(self.limits.generation_timeout)
            generation.emit(Event(piece, new_tokens=len(new)))
        ended = bool(new) and (new[-1] in wanted.settings.eos or detokenizer.stopped(new))
        generation.emit(Event("", "stop" if ended else "length", len(new)))

    def read(self, data: dict[str, Any], *, chat: bool) -> Wanted:
        """The request in a JSON object. Raises InputError, one line, for what is not one or is not offered here."""
        for name, neutral in NOT_OFFERED.items():
            if data.get(name) and data[name] != neutral:
                raise InputError(f"{name} is not offered here; leave it out")
        prompt, context = self._chat_prompt(data) if chat else self._prompt(data)
        room = self.limits.max_tokens
        asked = _integer(data, "max_completion_tokens", 1, room) or _integer(data, "max_tokens", 1, room)
        temperature, top_p = _number(data, "temperature", 0, 2), _number(data, "top_p", 0, 1)
        settings = Settings(
            max_tokens=asked or (room if chat else 16),  # as the form has it
            temperature=1.0 if temperature is None else temperature,
            top_p=top_p if temperature != 0 else None,
            seed=_integer(data, "seed", 0, 2**63),
        )
        options = data.get("stream_options") or {}
        stream = data.get("stream") or False
        if not isinstance(options, dict) or not isinstance(stream, bool):
            raise InputError("stream is true or false, and stream_options an object")
        usage = options.get("include_usage") is True
        return Wanted(prompt, context, with_eos(self.session, settings), _stops(data), stream, usage)

    def _chat_prompt(self, data: dict[str, Any]) -> tuple[list[int], list[int]]:
        if self.template is None:
            raise InputError(f"{self.session.package.manifest['name']} has no chat template: use /v1/completions")
        messages = data.get("messages")
        if not isinstance(messages, list) or not 0 < len(messages) <= MAX_MESSAGES:
            raise InputError(f"messages is not a list of 1 to {MAX_MESSAGES} messages")
        text = render(self.encoder, self.template, [_message(entry) for entry in messages])
        (prompt,) = encode(self.session, [text], add_special_tokens=False)
        self._refuse_long(prompt)
        return prompt, []

    def _prompt(self, data: dict[str, Any]) -> tuple[list[int], list[int]]:
        prompt = data.get("prompt")
        if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], str | list):
            prompt = prompt[0]
        if isinstance(prompt, str):
            (ids,) = encode(self.session, [prompt])
        elif isinstance(prompt, list) and prompt and all(type(token) is int and token >= 0 for token in prompt):
            vocabulary = self._decoder.vocab_size
            if vocabulary is not None and max(prompt) >= vocabulary:
                raise InputError(f"prompt holds an id that is too large; this model has {vocabulary} tokens")
            ids = prompt
        else:
            raise InputError("prompt is not one text, nor the ids of one")
        self._refuse_long(ids)
        return ids, ids

    def _refuse_long(self, prompt: Sequence[int]) -> None:
        limit = self._decoder.limit
        for most, whose in ((limit and limit - 1, "this model"), (self.limits.tokens, "this server")):
            if most is not None and len(prompt) > most:
                raise InputError(f"the prompt has {len(prompt)} tokens; {whose} takes {most} at most")


def _message(entry: Any) -> dict[str, str]:
    if not isinstance(entry, dict) or not isinstance(entry.get("role"), str):
        raise InputError("a message is not an object with a role and a content")
    content = entry.get("content")
    if isinstance(content, list) and all(
        isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str) for part in content
    ):
        content = "".join(part["text"] for part in content)
    if not isinstance(content, str):
        raise InputError("the content of a message is not a text")
    return {"role": entry["role"], "content": content}


def _stops(data: Mapping[str, Any]) -> tuple[str, ...]:
    stop = data.get("stop") or ()
    stop = (stop,) if isinstance(stop, str) else stop
    if not isinstance(stop, list | tuple) or len(stop) > MAX_STOPS or not all(isinstance(s, str) and s for s in stop):
        raise InputError(f"stop is not a text, nor a list of at most {MAX_STOPS}")
    return tuple(stop)


def _integer(data: Mapping[str, Any], name: str, low: int, high: int) -> int | None:
    value = data.get(name)
    if value is not None and (type(value) is not int or not low <= value <= high):
        raise InputError(f"{name} is not a whole number from {low} to {high}")
    return value


def _number(data: Mapping[str, Any], name: str, low: float, high: float) -> float | None:
    value = data.get(name)
    if value is not None and (type(value) not in (int, float) or not low <= value <= high):
        raise InputError(f"{name} is not a number from {low} to {high}")
    return None if value is None else float(value)


class Form:
    """The answers to one request: whole, or piece by piece as server-sent events."""

    def __init__(self, model: str, wanted: Wanted, *, chat: bool) -> None:
        self.wanted, self.chat = wanted, chat
        self._head = {
            "id": f"{'chatcmpl' if chat else 'cmpl'}-{secrets.token_hex(12)}",
            "created": int(time.time()),
            "model": model,
        }

    def whole(self, text: str, finish: str, new_tokens: int) -> dict[str, Any]:
        """The answer in one."""
        choice = {"message": {"role": "assistant", "content": text}} if self.chat else {"text": text}
        return {
            **self._head,
            "object": "chat.completion" if self.chat else "text_completion",
            "choices": [{"index": 0, **choice, "logprobs": None, "finish_reason": finish}],
            "usage": self._usage(new_tokens),
        }

    def first(self) -> bytes:
        """What a stream begins with."""
        return self._event({"role": "assistant", "content": ""}) if self.chat else b""

    def piece(self, event: Event) -> bytes:
        """A piece of a stream; the last says how it ended, and more."""
        if event.finish is None:
            return self._event({"content": event.text} if self.chat else event.text) if event.text else b""
        last = self._event({} if self.chat else "", event.finish)
        if self.wanted.usage:
            last += _sse({**self._stream_head(), "choices": [], "usage": self._usage(event.new_tokens)})
        return last + b"data: [DONE]\n\n"

    def _stream_head(self) -> dict[str, Any]:
        return {**self._head, "object": "chat.completion.chunk" if self.chat else "text_completion"}

    def _event(self, content: Any, finish: str | None = None) -> bytes:
        choice = {"index": 0, "delta" if self.chat else "text": content, "logprobs": None, "finish_reason": finish}
        return _sse({**self._stream_head(), "choices": [choice]})

    def _usage(self, new_tokens: int) -> dict[str, int]:
        before = len(self.wanted.prompt)
        return {"prompt_tokens": before, "completion_tokens": new_tokens, "total_tokens": before + new_tokens}


def _sse(data: dict[str, Any]) -> bytes:
    return f"data: {json.dumps(data, ensure_ascii=False)}\n\n".encode()


def error_event(error: Exception) -> bytes:
    """The end of a stream that failed after it had begun."""
    return _sse({"error": describe(error)})


def describe(error: Exception) -> dict[str, Any]:
    """An error as the form has it."""
    kind = "server_error"
    if isinstance(error, InputError) or (isinstance(error, RefusedError) and error.status < 500):
        kind = "invalid_request_error"
    if isinstance(error, RefusedError) and error.status == 429:
        kind = "rate_limit_error"
    message = str(error) if isinstance(error, IsoformerError) else "internal error"
    return {"message": message, "type": kind, "param": None, "code": None}
