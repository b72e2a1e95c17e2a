"""The good inputs that are varied: small packages, checkpoints of every reader, rows of every format."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch

from isoformer.models.families import decoder, encoder
from tests.conftest import export_small
from tests.models.checkpoints import test_bert, test_ctranslate2, test_gguf, test_whisper
from tests.models.checkpoints.decoders import theirs as decoder_of_transformers
from tests.runtime.conftest import CHATML, END, byte_tokenizer

ROWS = [{"id": 1, "text": "a fox"}, {"id": 2, "text": 'once, "upon"\n a time', "more": [1, {"x": None}]}, {"text": "é"}]


def make(folder: Path) -> Path:
    """Everything, below the folder; what is there already stays."""
    done = folder / "done"
    if not done.exists():
        folder.mkdir(parents=True, exist_ok=True)
        packages(folder)
        checkpoints(folder)
        rows(folder)
        done.touch()
    return folder


def packages(folder: Path) -> None:
    """An embedder and a decoder with a chat template."""
    texts = folder / "texts"
    texts.mkdir()
    tokenizer = byte_tokenizer()
    tokenizer.save(str(texts / "tokenizer.json"))
    (texts / "tokenizer_config.json").write_text(json.dumps({"eos_token": END, "chat_template": CHATML}))
    (texts / "generation_config.json").write_text(json.dumps({"eos_token_id": [tokenizer.token_to_id(END)]}))
    files = sorted(texts.iterdir())
    size = tokenizer.get_vocab_size()
    torch.manual_seed(5)
    small: dict[str, Any] = {
        "vocab_size": size,
        "hidden_size": 16,
        "num_heads": 2,
        "num_layers": 1,
        "intermediate_size": 20,
    }
    config = dataclasses.replace(encoder.TINY, **small)
    task, signature = encoder.task(config), encoder.signature(config)
    export_small(encoder.Model(config), signature, folder / "embedder", task=task, files=files[2:])
    config = decoder.Config(**small, max_positions=40, tied_embeddings=False)
    task, signature = decoder.task(config), decoder.signature(config)
    export_small(decoder.Model(config), signature, folder / "generator", task=task, files=files)


def checkpoints(folder: Path) -> None:
    """A BERT folder, a Llama in GGUF with its tokenizer, a Whisper of CTranslate2."""
    bert = test_bert.theirs("bert", "ForMaskedLM")
    bert.save_pretrained(folder / "bert")
    byte_tokenizer().save(str(folder / "bert" / "tokenizer.json"))
    llama = decoder_of_transformers("llama", vocab_size=len(test_gguf.TOKENS), num_hidden_layers=1)
    test_gguf.write(folder / "llama.gguf", llama, tokenizer=test_gguf.bpe("smollm"))
    whisper = test_whisper.theirs()
    (folder / "whisper").mkdir()
    test_ctranslate2.write(folder / "whisper/model.bin", test_ctranslate2.converted(whisper))
    added = [{"content": name, "id": 3 + number} for number, name in enumerate(test_ctranslate2.SPECIAL)]
    (folder / "whisper/tokenizer.json").write_text(json.dumps({"added_tokens": added}))
    (folder / "whisper/config.json").write_text(json.dumps({"suppress_ids": [2, 17], "suppress_ids_begin": [19]}))


def rows(folder: Path) -> None:
    """The same rows as JSON lines, CSV and Parquet."""
    import csv

    import pyarrow as pa
    import pyarrow.parquet as parquet

    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS * 9))
    with (folder / "rows.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "text"])
        writer.writerows([row.get("id"), row["text"]] for row in ROWS * 9)
    table = pa.table({"id": list(range(27)), "text": [row["text"] for row in ROWS * 9]})
    parquet.write_table(table, folder / "rows.parquet", row_group_size=10)
