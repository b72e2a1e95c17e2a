"""What Python answers, for the JavaScript tests to be held to: tokens of hostile texts, embeddings, generated tokens.

python -m tests.js.vectors FOLDER --embed PACKAGE --generate PACKAGE --reproducible PACKAGE

FOLDER gets vectors.json and the tokenizers that it speaks of.
"""

import argparse
import json
import random
import unicodedata
from collections.abc import Iterator, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

import numpy as np
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from isoformer.runtime import Session, load
from isoformer.runtime.generation import Settings, generate
from isoformer.runtime.tasks import embed
from isoformer.runtime.tasks.generate import encode, with_eos

TRAINING_TEXT = Path(__file__).parents[2] / "export" / "text.txt"
# By the architecture, as `isoformer.models.checkpoints.gguf_tokenizer` has it.
WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"

TEXTS = [
    "That is a happy person",
    "That is a happy dog",
    "Today is a sunny day",
    "Padding never changes an answer, left or right, and a row without keys is zero.",
    "Ein kurzer Satz.",
]
PROMPTS = [
    "The capital of France is",
    "Once upon a time, in a small village by the sea,",
    "The three primary colours are",
    "def fibonacci(n):\n",
    "Water boils at",
    "To make a good cup of tea, first",
    "Dear Sir or Madam,\n\nI am writing to",
    "Question: What is the largest planet of the solar system?\nAnswer:",
    "Il était une fois",
    "1, 2, 3, 4, 5,",
]
# Of several hundred tokens.
LONG = [TRAINING_TEXT.read_text(encoding="utf-8")[:1000], Path(__file__).read_text(encoding="utf-8")[:1000]]
HOSTILE = [
    "", " ", "a", "Ünïcödé ñandú café CAFÉ", "naïve e\u0301 cafe\u0301", "日本語テキスト 漢字", "한국어 텍스트",
    "🙂👩\u200d👩\u200d👧\u200d👦🏳️\u200d🌈 emoji", "a\u0000b", "\ufeffbom",
    "x\u0085y \u00a0z\u2028q\u2029r\u200bs\u200dt",
    "tab\tnl\nrc\r\nff\fvt\v.", "ﬁ ﬂ ① ½ ㎏ Å", "İstanbul ı ß ẞ ſ Σίσυφος ΣΑΣ", "don't we'll I'M it's  they'RE",
    "1234567890 3.14159 ١٢٣ ४५६ 一二三 Ⅻ", "a" * 300, "[CLS] [SEP] [MASK] [PAD] [UNK]", "[cls][mask]x[MASK]y",
    "<|im_start|>user\nhi<|im_end|>", "</s><s>", "`` ~~ ^^ $$ ££ €€", "（）「」。、，！？", "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𝒜",
    "\u202eabc\u202c",
    "กำลัง ไทย", "हिन्दी में", "العربية مُحَمَّد", "שָׁלוֹם", "\U000e0001\U000f0000 \ue000", "  lead  and trail  ",
    "\n\n\n\n   \n\t\t  x", "foo_bar.baz(qux[0]) == {'a': 1}", "\u0300\u0301combining first", "ǅ ǆ Ǆ", "\u1e9b\u0323",
    "𠀀𠀁 CJK", "\u3000wide", "\x7f\x80\x9f\xad soft", "kelvin K Ω ohm", "##a ##", "\u2581_under", "⹗⹘ new marks",
]  # fmt: skip
FORMS: tuple[tuple[Literal["NFD", "NFKC"], normalizers.Normalizer], ...] = (
    ("NFD", normalizers.NFD()),
    ("NFKC", normalizers.NFKC()),
)
POOLS = [
    "abcdefghij ABC.,!?'\"-",
    "éèüñçßøåİıſǅ",
    "日本語漢字한국어",
    "\u0300\u0301\u200d\u200b\u00ad\ufe0f\u2028\u0085\u00a0\ufeff\u180e\t\n\r\v\f",
    "🙂👩🏽🚀🏳️🌈",
    "0123456789١٢٣½²",
    "العربيةעבריתहिन्दी",
    "[]<>|_#@",
]


def hostile(count: int) -> list[str]:
    """Texts that tokenizers split differently: HOSTILE, and as many again of random characters."""
    rng = random.Random(7)  # noqa: S311  no secret
    drawn = ["".join(rng.choice(rng.choice(POOLS)) for _ in range(rng.randint(1, 40))) for _ in range(count)]
    return [*HOSTILE, *drawn, *("".join(_characters(rng)) for _ in range(count))]


def _characters(rng: random.Random) -> Iterator[str]:
    """Of all of Unicode that this Python knows, the early ones oftener.

    Not those that this Python and `tokenizers` take apart differently: some that came with later versions of Unicode,
    where JavaScript goes with Python.
    """
    for _ in range(rng.randint(1, 24)):
        character = chr(rng.randrange(rng.choice([0x300, 0x3000, 0xD800, 0x110000])))
        if unicodedata.category(character) not in ("Cs", "Cn") and all(
            normal.normalize_str(character) == unicodedata.normalize(form, character) for form, normal in FORMS
        ):
            yield character


def tokenizers(embedder: Path, decoder: Path) -> dict[str, Tokenizer]:
    """The packages' own, and the decoder's vocabulary behind other rules, one trained here among them."""
    own = decoder / "tokenizer.json"
    found = {
        "wordpiece": Tokenizer.from_file(str(embedder / "tokenizer.json")),
        "smollm": Tokenizer.from_file(str(own)),
    }
    for name, digits in (("qwen2", r"\p{N}"), ("llama", r"\p{N}{1,3}")):
        made: Any = Tokenizer.from_file(str(own))
        split = pre_tokenizers.Split(Regex(WORDS % digits), "isolated")
        made.pre_tokenizer = pre_tokenizers.Sequence(
            [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
        )
        made.normalizer = normalizers.NFC() if name == "qwen2" else None
        found[name] = made
    roberta: Any = Tokenizer.from_file(str(own))
    roberta.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    roberta.add_special_tokens(["<s>", "</s>"])
    ends = (("</s>", roberta.token_to_id("</s>")), ("<s>", roberta.token_to_id("<s>")))
    roberta.post_processor = processors.RobertaProcessing(*ends)
    return found | {"roberta": roberta, "unigram": _unigram()}


def _unigram() -> Tokenizer:
    made: Any = Tokenizer(models.Unigram())
    made.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
    made.pre_tokenizer, made.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=800,
        special_tokens=["<pad>", "</s>", "<unk>"],
        unk_token="<unk>",  # noqa: S106  no password
        show_progress=False,
    )
    made.train_from_iterator(TRAINING_TEXT.read_text(encoding="utf-8").split("\n"), trainer)
    made.post_processor = processors.TemplateProcessing("$A </s>", special_tokens=[("</s>", 1)])
    return made


def tokens(tokenizer: Tokenizer, texts: list[str]) -> list[dict[str, Any]]:
    """What each text becomes, whole and without special tokens, and back."""
    tokenizer.no_padding()
    tokenizer.no_truncation()
    result = []
    for text in texts:
        whole = tokenizer.encode(text)
        result.append(
            {
                "text": text,
                "ids": whole.ids,
                "plain": tokenizer.encode(text, add_special_tokens=False).ids,
                "types": whole.type_ids,
                "decoded": tokenizer.decode(whole.ids),
                "all": tokenizer.decode(whole.ids, skip_special_tokens=False),
            }
        )
    tokenizer.enable_truncation(7)
    for text, entry in zip(texts, result, strict=True):
        entry["cut"] = tokenizer.encode(text).ids
    return result


def generated(session: Session, others: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Settings, prompts and the tokens behind them: each prompt by itself, and all at once. others: by themselves."""
    prompts = encode(session, PROMPTS)
    cases: list[tuple[str, dict[str, Any], list[list[list[int]]]]] = [
        ("greedy", {"max_tokens": 32}, [[prompt] for prompt in prompts]),
        ("beams", {"max_tokens": 12, "beams": 3}, [[prompt] for prompt in prompts[:4]]),
        ("draws", {"max_tokens": 12, "temperature": 0.8, "top_k": 40, "top_p": 0.95, "seed": 11}, [prompts[:3]]),
        ("min p", {"max_tokens": 12, "min_p": 0.05, "repetition_penalty": 1.2, "seed": 3}, [prompts[3:5]]),
        ("one batch", {"max_tokens": 16}, [prompts[:5]]),
        ("others", {"max_tokens": 24}, [[prompt] for prompt in encode(session, others)]),
    ]
    return [
        {
            "name": name,
            "settings": settings,
            "prompts": batch,
            "tokens": generate(session, batch, with_eos(session, Settings(**settings))),
        }
        for name, settings, batches in cases
        for batch in batches
    ]


def digests(session: Session) -> Iterator[tuple[str, dict[str, str]]]:
    """Of each data set of golden vectors the outputs' SHA-256: every bit of the logits and of the cache."""
    for name, inputs, _ in session.package.golden():
        yield name, {output: sha256(array.tobytes()).hexdigest() for output, array in session.run(inputs).items()}


def main() -> None:
    """Writes the folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--embed", type=Path, required=True)
    parser.add_argument("--generate", type=Path, required=True)
    parser.add_argument("--precisions", default="int8,float32")
    parser.add_argument("--reproducible", type=Path, required=True, help="in int8")
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    found: dict[str, Any] = {"tokenizers": {}, "generate": {}}
    for name, tokenizer in tokenizers(given.embed, given.generate).items():
        texts = hostile(400)
        found["tokenizers"][name] = tokens(tokenizer, texts)
        tokenizer.no_truncation()
        (given.folder / f"{name}.json").write_text(tokenizer.to_str(), encoding="utf-8")
    with Session(given.embed) as session:
        vectors = embed.embeddings(session, TEXTS)
        found["embed"] = {"package": str(given.embed.resolve()), "texts": TEXTS, "vectors": vectors.tolist()}
    package = load(given.generate)
    found["package"] = str(given.generate.resolve())
    for precision in given.precisions.split(","):
        with Session.fastest(package, precision=precision) as session:
            found["generate"][precision] = generated(session)
    with Session.fastest(given.reproducible) as session:
        if session.variant is None or not session.package.variant(session.variant).get("reproducible"):
            parser.error(f"{given.reproducible} is not reproducible; export it with --reproducible")
        answers, outputs = generated(session, LONG), dict(digests(session))
    place = str(given.reproducible.resolve())
    found["reproducible"] = {"package": place, "cases": answers, "digests": outputs}
    found["random"] = {str(seed): np.random.default_rng([seed, 5]).random(4).tolist() for seed in (0, 7, 2**63 + 5)}
    (given.folder / "vectors.json").write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main()
