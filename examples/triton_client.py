"""Texts to vectors through a server, by tritonclient: what it sends and reads is binary.

    isoformer serve demo/minilm &
    python examples/triton_client.py localhost:8000 minilm demo/minilm/tokenizer.json "a happy person" "a happy dog"

Prints the vectors as JSON. Needs tritonclient[http] and tokenizers.
"""

import json
import sys

import numpy as np
from tokenizers import Tokenizer
from tritonclient import http  # pyright: ignore[reportMissingImports]


def main() -> None:
    address, model, file, *texts = sys.argv[1:]
    tokenizer = Tokenizer.from_file(file)
    tokenizer.enable_padding()
    encodings = tokenizer.encode_batch(texts)
    arrays = {
        "input_ids": np.array([encoding.ids for encoding in encodings]),
        "attention_mask": np.array([encoding.attention_mask for encoding in encodings]),
    }
    inputs = []
    for name, array in arrays.items():
        tensor = http.InferInput(name, list(array.shape), "INT64")
        tensor.set_data_from_numpy(array)
        inputs.append(tensor)
    with http.InferenceServerClient(address) as client:
        if not (client.is_server_live() and client.is_server_ready() and client.is_model_ready(model)):
            sys.exit(f"{address} is not ready")
        answer = client.infer(model, inputs, outputs=[http.InferRequestedOutput("sentence_embedding")])
        print(json.dumps(answer.as_numpy("sentence_embedding").tolist()))


if __name__ == "__main__":
    main()
