"""The smallest client: add and subtract sixteen numbers with the model `simple`.

python examples/infer.py 127.0.0.1:8001 KEY
"""

import sys

import numpy as np
from tritonclient.grpc import InferenceServerClient, InferenceServerException, InferInput


def main(address: str, key: str) -> None:
    """Call the model once, and print what it gives."""
    left = InferInput("INPUT0", [1, 16], "INT32")
    left.set_data_from_numpy(np.arange(16, dtype=np.int32).reshape(1, 16))
    right = InferInput("INPUT1", [1, 16], "INT32")
    right.set_data_from_numpy(np.ones((1, 16), np.int32))

    with InferenceServerClient(address) as client:
        # The key is all that a client of Triton has to add. The timeout becomes the call's deadline, all the way.
        result = client.infer("simple", [left, right], headers={"authorization": f"Bearer {key}"}, client_timeout=10)

    print("sum       ", *result.as_numpy("OUTPUT0")[0])
    print("difference", *result.as_numpy("OUTPUT1")[0])


if __name__ == "__main__":
    match sys.argv[1:]:
        case [address, key]:
            try:
                main(address, key)
            except InferenceServerException as error:
                sys.exit(str(error))
        case _:
            sys.exit(f"usage: {sys.argv[0]} HOST:PORT KEY")
