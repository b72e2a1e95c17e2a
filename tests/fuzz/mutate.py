"""Hostile variations of good input. Everything is drawn from the generator that is given, so a seed makes it again."""

import json
import random
from typing import Any

NUMBERS = [0, 1, 2, 7, 127, 128, 255, 256, 2**15, 2**16, 2**24, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**62, 2**63 - 1]
NUMBERS += [2**63, 2**64 - 1, 10**12, 10**30]
MOST = 2**20  # bytes that an input may grow to
LINES = [
    "",
    "\0",
    "\n",
    "\x1b[2J",
    "../x",
    "..",
    "/",
    "C:\\x",
    "\\\\host\\x",
    "a" * 300,
    "\u202e",
    "[/bold]",
    "{{ 1 }}",
]
LINES += ["NaN", "{", "__proto__", "past_key_values.0.key", "batch_size", "é", "model.onnx"]


def any_bytes(rng: random.Random, data: bytes, words: list[bytes] | None = None) -> bytes:
    """The bytes with one to eight changes."""
    found = bytearray(data)
    for _ in range(1 + int(rng.expovariate(0.7)) % 8):
        place = rng.randrange(len(found) + 1)
        size = 1 << rng.randrange(10)
        match rng.randrange(9):
            case 0 if found:
                found[place % len(found)] ^= 1 << rng.randrange(8)
            case 1 if found:
                found[place % len(found)] = rng.choice((0, 1, 127, 128, 255, rng.randrange(256)))
            case 2:
                width = rng.choice((2, 4, 8))
                number = rng.choice(NUMBERS) % 256**width
                found[place : place + width] = number.to_bytes(width, rng.choice(("little", "big")))
            case 3:
                del found[place:]
            case 4:
                del found[place : place + size]
            case 5:
                found[place:place] = found[place : place + size] * rng.randrange(1, 9)
            case 6:
                found[place:place] = rng.randbytes(size)
            case 7 if words:
                word = rng.choice(words)
                found[place : place + rng.choice((0, len(word)))] = word
            case 8:
                other = rng.randrange(len(found) + 1)
                found[place : place + size] = found[other : other + size]
    return bytes(found[:MOST])


def hostile(rng: random.Random, words: list[str]) -> Any:
    """A value that should not be there."""
    match rng.randrange(12):
        case 0:
            return rng.choice(NUMBERS) * rng.choice((1, -1))
        case 1:
            return rng.choice((0.5, -1e308, 1e-320, 1e308))
        case 2:
            return rng.choice((None, True, False))
        case 3:
            return rng.choice([*LINES, *words])
        case 4:
            return rng.choice(words or LINES)
        case 5:
            return []
        case 6:
            return {}
        case 7:
            return [rng.choice(NUMBERS)] * rng.choice((1, 2, 9, 5000))
        case 8:
            return {rng.choice([*LINES, *words]): rng.choice(NUMBERS)}
        case 9:
            return [[[rng.choice([*LINES, *words])]]]
        case 10:
            return nested(rng.choice((3, 70, 2000)))
        case _:
            return "x" * rng.choice((1, 1000, 100_000))


def nested(depth: int) -> Any:
    value: Any = 1
    for number in range(depth):
        value = [value] if number % 2 else {"a": value}
    return value


def any_json(rng: random.Random, value: Any, words: list[str], within: tuple[str, ...] = ()) -> bytes:
    """The data as JSON with one to four changes, sometimes no JSON any more. within: keys, one of which is changed."""
    copy = json.loads(json.dumps(value))
    for _ in range(1 + int(rng.expovariate(1.2)) % 4):
        _change(rng, copy, words, [rng.choice(within)] if within and rng.random() < 0.8 else [])
    try:
        text = json.dumps(copy, ensure_ascii=rng.random() < 0.5)
    except (RecursionError, ValueError):
        text = json.dumps(value)
    match rng.randrange(12):
        case 0:
            text = text.replace("{", '{"schema": 1, "schema": 2, "name": "a", ', 1)
        case 1:
            text = text.replace("1", rng.choice(("NaN", "Infinity", "1e999", "9" * 5000, "-0", "1E+2")), 1)
        case 2:
            text = "[" * 50_000 + text
    content = text.encode("utf-8", "surrogatepass")
    return any_bytes(rng, content) if rng.random() < 0.15 else content


def _change(rng: random.Random, value: Any, words: list[str], way: list[str]) -> None:
    """One entry of the data, at any depth, is replaced, dropped, doubled or renamed."""
    place: Any = value
    for key in way:
        if isinstance(place, dict) and isinstance(place.get(key), dict | list) and place[key]:
            place = place[key]
    for _ in range(12):
        if not isinstance(place, dict | list) or not place:
            return
        key: Any = rng.choice(list(place)) if isinstance(place, dict) else rng.randrange(len(place))
        if isinstance(place[key], dict | list) and place[key] and rng.random() < 0.75:
            place = place[key]
            continue
        match rng.randrange(6):
            case 0:
                del place[key]
            case 1 if isinstance(place, dict):
                place[rng.choice([*LINES, *words])] = place.pop(key)
            case 2 if isinstance(place, list):
                place += place[: rng.choice((1, 100))]
            case 3 if isinstance(place, dict):
                place[rng.choice([*LINES, *words])] = hostile(rng, words)
            case _:
                place[key] = hostile(rng, words)
        return
