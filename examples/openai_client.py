"""An answer, piece by piece, from a server by the openai client.

isoformer serve demo/smollm2 &
python examples/openai_client.py http://localhost:8000/v1 smollm2 "What is the capital of France?"
"""

import sys

from openai import OpenAI  # pyright: ignore[reportMissingImports]


def main() -> None:
    address, model, text = sys.argv[1:]
    client = OpenAI(base_url=address, api_key="none is asked for")
    stream = client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": text}],
        max_tokens=24,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    )
    for event in stream:
        if event.choices and event.choices[0].delta.content:
            print(event.choices[0].delta.content, end="", flush=True)
        if event.usage:
            print(f"\n{event.usage.completion_tokens} tokens", file=sys.stderr)


if __name__ == "__main__":
    main()
