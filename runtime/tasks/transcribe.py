"""transcribe: what is said in a sound file, and when.

Long sound goes through the model in windows (30 s of Whisper's), each beginning where the last whole segment of the
one before ended: Radford et al. 2022 (https://arxiv.org/abs/2212.04356), sections 3.8 and 4.5, whose thresholds these
are. What was said before is not given to the next window, and no window is decoded again at a higher temperature.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from isoformer.runtime import audio, sampling
from isoformer.runtime.binding import CrossDecoder
from isoformer.runtime.errors import InputError
from isoformer.runtime.generation import Settings, Stats, stream
from isoformer.runtime.sampling import Processor, suppress
from isoformer.runtime.session import Graphs
from isoformer.runtime.tasks.translate import DECODER, known
from isoformer.runtime.text import text_encoder

if TYPE_CHECKING:
    from rich.console import Console

EXAMPLE = "speech.wav"
FEATURES = "feature_extractor"
BATCH_SIZE = 4  # windows of sound
TICK = 0.02  # seconds: from one timestamp to the next
TICK_FRAMES = 2
FIRST_TICKS = 50  # the first timestamp of a window is at 1 s at the latest
# Nobody speaks in a window of which the model says so, unless it is sure enough of the words that it found.
NO_SPEECH, SURE = 0.6, -1.0  # a probability, and a mean log probability of the tokens
# Of digital silence, half a step of 16 bits, models of Whisper are sure that it says "you": its answer is not taken.
SILENT = 2.0**-16


@dataclass
class Recording:
    """One file on its way: its sound, how far it has come (in frames of 10 ms), and what was found."""

    name: str
    sound: np.ndarray
    hop: int
    seek: int = 0
    segments: list[dict[str, Any]] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)

    @property
    def frames(self) -> int:
        """Of the whole sound, at least one."""
        return max(1, len(self.sound) // self.hop)


def run(
    graphs: Graphs,
    files: Sequence[str],
    *,
    settings: Settings | None = None,
    truncate: bool = False,
    language: str | None = None,
    task: str = "transcribe",
    timestamps: bool = True,
    progress: Callable[[int], None] = lambda _done: None,
    heard: Callable[[float, float], None] = lambda _done, _total: None,
    stats: Stats | None = None,
) -> list[dict[str, Any]]:
    """[{"input": path, "text": …, "segments": [{"start": s, "end": s, "text": …}, …], "token_ids": […]}, …]

    Files share batches, window by window. language: a code such as "de"; by default the likeliest of each file's
    window. task: "translate" is into English. timestamps=False: one segment a window, which moves by its whole length.
    truncate: of a longer file only the first window. progress: called with the number of files that are done; heard:
    after each window, with the seconds of sound that are done, and of all files. Files in which nobody speaks have no
    segments.
    Raises InputError for files that are no sound, and for a language or task that the model does not know.
    """
    said = graphs.package.task
    settings = _settings(said, settings)
    prompt = Prompt(said, language, task, timestamps)
    recordings = [Recording(str(file), audio.read(file, said["sample_rate"]), said["hop_length"]) for file in files]
    decoder, tokenizer = CrossDecoder(graphs[DECODER]), text_encoder(graphs[DECODER]).tokenizer
    size = BATCH_SIZE if settings.beams == 1 else 1
    waiting = list(recordings)
    while waiting:
        chosen = waiting[:size]
        found = _windows(graphs, decoder, chosen, prompt, settings, stats)
        for recording, tokens in zip(chosen, found, strict=True):
            _keep(recording, tokens, said, timestamps, tokenizer.decode)
        over = [r for r in chosen if truncate or r.seek >= r.frames]
        waiting = [r for r in waiting if all(r is not one for one in over)]
        heard(*(sum(frames) * said["hop_length"] / said["sample_rate"] for frames in _frames(recordings, waiting)))
        progress(len(over))
    return [
        {
            "input": r.name,
            "text": "".join(segment["text"] for segment in r.segments).strip(),
            "segments": [segment | {"text": segment["text"].strip()} for segment in r.segments],
            "token_ids": r.tokens,
        }
        for r in recordings
    ]


def _frames(recordings: list[Recording], waiting: list[Recording]) -> tuple[list[int], list[int]]:
    """The frames of each recording that are done, and that there are."""
    left = {id(recording) for recording in waiting}
    whole = [r.frames for r in recordings]
    return [min(r.seek, r.frames) if id(r) in left else r.frames for r in recordings], whole


class Prompt:
    """How an answer begins: start, language, task, and a token where no times are wanted."""

    def __init__(self, said: dict[str, Any], language: str | None, task: str, timestamps: bool) -> None:
        self.start, self.languages, tasks = list(said["decoder_start"]), said["languages"], said["tasks"]
        if language is not None and language not in (self.languages or ("en",)):
            raise InputError(f"language {language!r} is not one of {', '.join(self.languages) or 'en'}")
        if task not in (tasks or ("transcribe",)):
            raise InputError(f"task {task!r} is not one of {', '.join(tasks) or 'transcribe'}")
        if timestamps and said["timestamp_begin"] is None:
            raise InputError("this model has no timestamps: pass timestamps=False (--no-timestamps)")
        self.language = self.languages.get(language)
        silent = said["no_timestamps"]
        self.end = [*([tasks[task]] if tasks else []), *([silent] if not timestamps and silent is not None else [])]
        self.length = len(self.start) + bool(self.languages) + len(self.end)
        self.no_speech = said["no_speech"]
        self.processors = processors(said, self.length, timestamps)

    def tokens(self, logits: np.ndarray) -> list[int]:
        """The prompt of a window, from the logits (vocabulary,) behind `start`."""
        spoken = self.language
        if spoken is None and self.languages:
            spoken = max(self.languages.values(), key=lambda token: logits[token])
        return [*self.start, *([] if spoken is None else [spoken]), *self.end]


def _windows(
    graphs: Graphs,
    decoder: CrossDecoder,
    recordings: list[Recording],
    prompt: Prompt,
    settings: Settings,
    stats: Stats | None,
) -> list[list[int]]:
    """The tokens of each recording's next window, [] where nobody speaks."""
    length = graphs.package.task["max_frames"] * graphs.package.task["hop_length"]
    waveform = np.stack([audio.window(r.sound, r.seek * r.hop, length) for r in recordings])
    features = graphs[FEATURES].run({"waveform": waveform})["input_features"]
    mask = np.ones((len(recordings), features.shape[2] // TICK_FRAMES), np.int64)
    arrays = known(graphs, {"input_features": features, "attention_mask": mask}, mask)
    decoder.condition(arrays)
    first, _ = decoder.start([prompt.start] * len(recordings))
    prompts: dict[int, Sequence[int]] = {number: prompt.tokens(logits) for number, logits in enumerate(first)}
    decoder.condition(arrays)
    found: dict[int, list[int]] = {number: [] for number in prompts}
    rules = replace(settings, processors=(*prompt.processors, *settings.processors))
    for number, token in stream(decoder, prompts, rules, stats=stats):
        found[number].append(token)
    for number, logits in enumerate(first):
        if np.abs(waveform[number]).max() < SILENT:
            found[number] = []
            continue
        if prompt.no_speech is None or sampling.softmax(logits.astype(np.float64))[prompt.no_speech] <= NO_SPEECH:
            continue
        decoder.condition({name: array[number : number + 1] for name, array in arrays.items()})
        if confidence(decoder, prompts[number], found[number], rules.processors) < SURE:
            found[number] = []
    return [[token for token in tokens if token not in settings.eos] for tokens in found.values()]


def confidence(
    decoder: CrossDecoder, prompt: Sequence[int], new: Sequence[int], processors: Sequence[Processor]
) -> float:
    """The mean log probability of the new tokens of the one sequence that the decoder is conditioned on."""
    ids = [*prompt, *new]
    (logits,) = decoder.score([ids[:-1]])
    total = 0.0
    for place in range(len(prompt), len(ids)):
        scores = sampling.apply(processors, ids[:place], logits[place - 1].astype(np.float64))
        total += float(sampling.log_softmax(scores)[ids[place]])
    return total / len(new)


def _keep(
    recording: Recording, tokens: list[int], said: dict[str, Any], timestamps: bool, decode: Callable[[list[int]], str]
) -> None:
    """Adds a window's segments and moves the window on."""
    size = min(said["max_frames"], recording.frames - recording.seek)
    begin = said["timestamp_begin"]
    if timestamps:
        parts, ticks = segments(tokens, begin)
        ahead = size if ticks is None else min(size, ticks * TICK_FRAMES)
    else:
        parts, ahead = ([(0, None, tokens)] if tokens else []), size
    offset, seconds = recording.seek * recording.hop / said["sample_rate"], recording.hop / said["sample_rate"]
    for start, end, ids in parts:
        text = decode([token for token in ids if begin is None or token < begin])
        # A window goes on in silence where the sound ends, and so may what was found in it.
        last = offset + size * seconds if end is None else min(offset + end * TICK, offset + size * seconds)
        if text.strip() and last > offset + start * TICK:
            recording.segments.append({"start": round(offset + start * TICK, 3), "end": round(last, 3), "text": text})
            recording.tokens += ids
    recording.seek += ahead


def segments(tokens: Sequence[int], begin: int) -> tuple[list[tuple[int, int | None, list[int]]], int | None]:
    """What a window's tokens say: [(start, end, tokens), …], and where the next window begins; all in ticks of 20 ms.

    begin: the timestamp of 0 s. Two timestamps in a row stand between segments. What comes behind the last such pair
    is cut off by the window's end and left to the next window, which begins there; None is the end of the window: there
    is no pair, or the window ends with one timestamp, behind which nobody speaks. An end of None is not known.
    """
    stamps = [token >= begin for token in tokens]
    cuts = [i for i in range(1, len(tokens)) if stamps[i - 1] and stamps[i]]
    whole = len(tokens) > 1 and stamps[-2:] == [False, True]
    if not cuts:
        last = next((token - begin for token in reversed(tokens) if token >= begin), 0)
        return ([(0, last or None, list(tokens))] if tokens else []), None
    found: list[tuple[int, int | None, list[int]]] = []
    for low, high in zip([0, *cuts], [*cuts, len(tokens)] if whole else cuts, strict=False):
        part = list(tokens[low:high])
        found.append((part[0] - begin, part[-1] - begin, part))
    return found, None if whole else tokens[cuts[-1] - 1] - begin


def processors(said: dict[str, Any], length: int, timestamps: bool) -> list[Processor]:
    """Tokens that never come, tokens that do not come first behind the prompt of that length, and the timestamps."""
    made = [suppress(said["suppressed"])] if said["suppressed"] else []
    if first := said["begin_suppressed"]:
        made.append(lambda ids, logits: suppress(first)(ids, logits) if len(ids) == length else logits)
    if timestamps:
        made.append(timestamp_rules(length, said["timestamp_begin"], said["eos"][0], said["no_timestamps"]))
    return made


def timestamp_rules(length: int, begin: int, eos: int, no_timestamps: int | None = None) -> Processor:
    """Timestamps where they may stand, behind a prompt of that length.

    The first token is one, of 1 s at most. They come in pairs, the end of a segment and the start of the next, but for
    the first and the last before eos, and never go back; a segment is not empty. Where all timestamps together are
    likelier than the likeliest other token, one of them comes. begin: the one of 0 s; all after it are timestamps.
    Radford et al. 2022, https://arxiv.org/abs/2212.04356, section 4.5.
    """

    def process(ids: Sequence[int], logits: np.ndarray) -> np.ndarray:
        logits, new = logits.copy(), ids[length:]
        if no_timestamps is not None:
            logits[no_timestamps] = -np.inf
        if not new:
            logits[:begin] = logits[begin + FIRST_TICKS + 1 :] = -np.inf
            return logits
        ended = new[-1] >= begin and len(new) > 1 and new[-2] < begin
        if ended:  # the start of the next segment follows, or the end of all
            text = np.arange(begin) != eos
            logits[:begin][text] = -np.inf
        elif new[-1] >= begin:
            logits[begin:] = -np.inf
        if stamps := [token for token in new if token >= begin]:
            logits[begin : stamps[-1] + (not ended)] = -np.inf
        likelihoods = sampling.log_softmax(logits)
        times = np.logaddexp.reduce(likelihoods[begin:]) if begin < len(logits) else -np.inf
        if times > likelihoods[:begin].max():
            logits[:begin] = -np.inf
        return logits

    return process


def _settings(said: dict[str, Any], settings: Settings | None) -> Settings:
    """Half of the decoder's positions are for the answer, as in training; eos is the package's unless given."""
    settings = settings or Settings(max_tokens=said["max_length"] // 2)
    return settings if settings.eos else replace(settings, eos=tuple(said["eos"]))


def srt(results: Sequence[dict[str, Any]]) -> str:
    """The segments as SubRip subtitles, numbered through: a number, "HH:MM:SS,mmm --> HH:MM:SS,mmm", the text."""
    parts = [segment for result in results for segment in result["segments"]]
    return "".join(
        f"{number}\n{_clock(part['start'], ',')} --> {_clock(part['end'], ',')}\n{part['text']}\n\n"
        for number, part in enumerate(parts, 1)
    )


def _clock(seconds: float, point: str) -> str:
    milliseconds = round(seconds * 1000)
    minutes, rest = divmod(milliseconds, 60_000)
    return f"{minutes // 60:02}:{minutes % 60:02}:{rest // 1000:02}{point}{rest % 1000:03}"


def show(results: Sequence[dict[str, Any]], console: "Console") -> None:
    """Each file's segments, a line each with its times."""
    for result in results:
        if len(results) > 1:
            console.print(result["input"], style="bold", soft_wrap=True, highlight=False, markup=False)
        for part in result["segments"]:
            times = f"{_clock(part['start'], '.')} → {_clock(part['end'], '.')}"
            console.print(f"{times}  {part['text']}", soft_wrap=True, highlight=False, markup=False)
