"""Writes runtime/js/src/unicode.js: what `tokenizers` takes for a control character, an accent and punctuation.

Its tables are of an old Unicode, those of JavaScript engines of the newest, and a tokenizer that splits otherwise gives
other tokens. `python tests/js/unicode_tables.py`; it asks the installed `tokenizers` about every code point.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

from tokenizers import normalizers, pre_tokenizers

FILE = Path(__file__).parents[2] / "runtime" / "js" / "src" / "unicode.js"
OFF = {"clean_text": False, "handle_chinese_chars": False, "strip_accents": False, "lowercase": False}


def tables() -> dict[str, str]:
    """Name → ranges of code points as the inside of a character class of a regular expression."""
    clean = normalizers.BertNormalizer(**OFF | {"clean_text": True})
    strip = normalizers.BertNormalizer(**OFF | {"strip_accents": True})
    split = pre_tokenizers.BertPreTokenizer()
    found: dict[str, Callable[[str], bool]] = {
        "CONTROL": lambda c: clean.normalize_str(f"a{c}b") == "ab",
        "ACCENT": lambda c: strip.normalize_str(f"a{c}b") == "ab",
        "PUNCTUATION": lambda c: len(split.pre_tokenize_str(f"a{c}b")) == 3,
    }
    return {name: "".join(ranges(test)) for name, test in found.items()}


def ranges(test: Callable[[str], bool]) -> Iterator[str]:
    """The runs of code points that pass the test, as \\u{first}-\\u{last}."""
    begin = None
    for code in range(0x110000 + 1):
        inside = code < 0x110000 and not 0xD800 <= code < 0xE000 and test(chr(code))
        if inside and begin is None:
            begin = code
        elif not inside and begin is not None:
            yield f"\\u{{{begin:x}}}" if begin == code - 1 else f"\\u{{{begin:x}}}-\\u{{{code - 1:x}}}"
            begin = None


def content() -> str:
    """The module."""
    lines = [
        "/** Classes of characters as Python's `tokenizers` has them; written by tests/js/unicode_tables.py. */",
        "",
    ]
    for name, classes in tables().items():
        lines += ["// prettier-ignore", f"export const {name} = String.raw`{classes}`;"]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    FILE.write_text(content(), encoding="utf-8")
