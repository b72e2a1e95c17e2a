"""Text to token ids with the package's own tokenizer.json, and lists of texts to batches and back."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from tokenizers import Encoding, Tokenizer

from isoformer.runtime.batching import plan
from isoformer.runtime.cases import Arrays
from isoformer.runtime.errors import InputError, PackageError
from isoformer.runtime.forms import MAX_BYTES, read_object
from isoformer.runtime.session import Session

BATCH_SIZE = 32
TOKENIZER, CONFIG = "tokenizer.json", "tokenizer_config.json"


class TextEncoder:
    """Makes the inputs of a text model: ids, mask, and token types where the model has them.

    truncate: cut a text that is too long for the model; otherwise it is an InputError.
    Raises PackageError when the package has no tokenizer.
    """

    def __init__(self, session: Session, *, truncate: bool = False) -> None:
        package = session.package
        if not package.has(TOKENIZER):
            raise PackageError(f"{package.path} has no {TOKENIZER}, so it takes no text; feed ids through Session")
        self.tokenizer = read_tokenizer(package.file(TOKENIZER))
        self.tokenizer.no_padding()
        self.tokenizer.no_truncation()
        self.session = session
        self.limit = session.signature.axes.get("sequence_length", (1, None))[1]
        if truncate and self.limit is not None:
            self.tokenizer.enable_truncation(self.limit)
        self.config = read_object(package.file(CONFIG)) if package.has(CONFIG) else {}
        self.pad_id = self.special("pad", ("[PAD]", "<pad>")) or 0

    def special(self, kind: str, usual: Sequence[str]) -> int | None:
        """The id of the special token that tokenizer_config.json names, or of the first usual one that exists."""
        named = self.config.get(f"{kind}_token")
        named = named.get("content") if isinstance(named, dict) else named
        for token in (*([named] if isinstance(named, str) else []), *usual):
            number = self.tokenizer.token_to_id(token)
            if number is not None:
                return number
        return None

    def encode(self, texts: Sequence[str]) -> list[Encoding]:
        """The texts' tokens. Raises InputError for one that is longer than the model takes."""
        try:
            encodings = self.tokenizer.encode_batch(list(texts))
        except TypeError:
            raise InputError("a text is not Unicode (is the file or the command line UTF-8?)") from None
        for text, encoding in zip(texts, encodings, strict=True):
            if self.limit is not None and len(encoding.ids) > self.limit:
                raise InputError(
                    f"{text[:40]!r}… has {len(encoding.ids)} tokens; this model takes {self.limit} at most: "
                    "split it, or pass --truncate (truncate=True) to cut it"
                )
            if not encoding.ids:
                raise InputError(f"{text!r} has no tokens")
        return encodings

    def inputs(self, encodings: Sequence[Encoding], widths: Callable[[int], int] = int) -> Arrays:
        """One batch, padded on the right to its longest text, or to the width that is said for its length."""
        longest = max(len(encoding.ids) for encoding in encodings)
        width = widths(longest)
        shape = (len(encodings), width if self.limit is None else max(longest, min(width, self.limit)))
        columns = {
            "input_ids": np.full(shape, self.pad_id, np.int64),
            "attention_mask": np.zeros(shape, np.int64),
            "token_type_ids": np.zeros(shape, np.int64),
        }
        for row, encoding in enumerate(encodings):
            length = len(encoding.ids)
            columns["input_ids"][row, :length] = encoding.ids
            columns["attention_mask"][row, :length] = 1
            columns["token_type_ids"][row, :length] = encoding.type_ids
        result = {}
        columns["segment_ids"] = columns["attention_mask"]  # one text a row
        for spec in self.session.signature.inputs:
            if spec.kind == "lengths":
                result[spec.name] = columns["attention_mask"].sum(1)
            elif spec.kind == "prefix":  # no text has one
                result[spec.name] = np.zeros(shape[0], np.int64)
            elif spec.name in columns:
                # A mask with a query axis too says the same of every query.
                column = columns[spec.name].reshape(shape[0], *(1,) * (len(spec.axes) - 2), shape[1])
                wide = [axis if isinstance(axis, int) else shape[1] for axis in spec.axes[1:]]
                result[spec.name] = np.ascontiguousarray(np.broadcast_to(column, (shape[0], *wide)))
        return result


def text_encoder(session: Session, *, truncate: bool = False) -> TextEncoder:
    """The session's encoder, made once: reading a tokenizer takes longer than a short text through a small model."""
    if truncate not in session.text_encoders:
        session.text_encoders[truncate] = TextEncoder(session, truncate=truncate)
    return session.text_encoders[truncate]


def read_tokenizer(file: Path) -> Tokenizer:
    """The tokenizer of a tokenizer.json. Raises PackageError, one line, for what is none or too large."""
    if (size := file.stat().st_size) > MAX_BYTES:
        raise PackageError(f"{file} has {size:,} bytes; {MAX_BYTES:,} are the most")
    try:
        return Tokenizer.from_file(str(file))
    except (KeyboardInterrupt, SystemExit):
        raise
    except (
        BaseException
    ) as error:  # tokenizers raises no narrower class, and where it gives up one that is no Exception
        raise PackageError(f"{file} cannot be read: {' '.join(str(error).split())[:300]}") from None


def run_batches(
    session: Session,
    encoder: TextEncoder,
    texts: Sequence[str],
    output: str,
    *,
    batch_size: int = BATCH_SIZE,
    progress: Callable[[int], None] = lambda _done: None,
) -> Iterator[tuple[int, Encoding, np.ndarray]]:
    """(index, tokens, row of `output`) of each text; texts of like length share a batch, so the order is theirs."""
    encodings = encoder.encode(texts)
    lengths = [len(encoding.ids) for encoding in encodings]
    cost = session.cost
    for chosen in plan(lengths, cost, batch_size):
        rows = session.run(encoder.inputs([encodings[i] for i in chosen], cost.width), [output])[output]
        for index, row in zip(chosen, rows, strict=True):
            yield index, encodings[index], row
        progress(len(chosen))
