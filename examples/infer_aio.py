"""Many calls at once: how near is each text to the first one? With the model `text_embedding`.

python examples/infer_aio.py 127.0.0.1:8001 KEY
python examples/infer_aio.py 127.0.0.1:8001 KEY "a dog in the park" "a puppy outside" "interest rates"
"""

import asyncio
import sys
from typing import Any

import numpy as np
from tritonclient.grpc.aio import InferenceServerClient, InferInput

TEXTS = ("a dog runs in the park", "a puppy plays outside", "interest rates rose again")


async def embed(client: InferenceServerClient, key: str, text: str) -> Any:  # noqa: ANN401  tritonclient is untyped
    """The text as a vector of length one."""
    tensor = InferInput("TEXT", [1, 1], "BYTES")
    tensor.set_data_from_numpy(np.array([[text.encode()]], dtype=np.object_))
    headers = {"authorization": f"Bearer {key}"}
    result = await client.infer("text_embedding", [tensor], headers=headers, client_timeout=10)
    vector = result.as_numpy("EMBEDDING")[0]
    return vector / np.linalg.norm(vector)


async def main(address: str, key: str, texts: tuple[str, ...]) -> None:
    """Embed all texts at once, over one connection, and compare each with the first."""
    async with InferenceServerClient(address) as client:
        vectors = await asyncio.gather(*(embed(client, key, text) for text in texts))
    for text, vector in zip(texts, vectors, strict=True):
        print(f"{vectors[0] @ vector:6.3f}  {text}")


if __name__ == "__main__":
    match sys.argv[1:]:
        case [address, key, *texts]:
            asyncio.run(main(address, key, tuple(texts) or TEXTS))
        case _:
            sys.exit(f"usage: {sys.argv[0]} HOST:PORT KEY [TEXT...]")
