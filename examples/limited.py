"""What a limited key sees, how a limit refuses, and when to come back.

python examples/limited.py 127.0.0.1:8001 LIMITED_KEY
"""

import sys

import grpc
import numpy as np
from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status
from tritonclient.grpc import InferenceServerClient, InferenceServerException, InferInput

MOST_CALLS = 1000


def main(address: str, key: str) -> None:
    """Call until a limit refuses, and print what the refusal says."""
    headers = {"authorization": f"Bearer {key}"}
    tensors = [InferInput(name, [1, 16], "INT32") for name in ("INPUT0", "INPUT1")]
    for tensor in tensors:
        tensor.set_data_from_numpy(np.ones((1, 16), np.int32))
    with InferenceServerClient(address) as client:
        try:
            index = client.get_model_repository_index(headers=headers)
        except InferenceServerException as error:
            sys.exit(error.message())
        print("sees      ", ", ".join(model.name for model in index.models))
        for answered in range(MOST_CALLS):
            try:
                client.infer("simple", tensors, headers=headers, client_timeout=10)
            except InferenceServerException as error:
                print("answered  ", answered)
                tell(error.__context__)
                return
    print("answered  ", MOST_CALLS, "and met no limit")


def tell(error: object) -> None:
    """Print why a call was refused, and when to call again."""
    if not isinstance(error, grpc.Call):
        raise TypeError(error)
    info, retry = ErrorInfo(), RetryInfo()
    for name, value in error.trailing_metadata() or ():
        if name == "grpc-status-details-bin" and isinstance(value, bytes):
            for detail in Status.FromString(value).details:
                _ = detail.Unpack(info) or detail.Unpack(retry)
    print("refused   ", f"{info.reason}: {error.details()}")
    print("come back ", f"in {retry.retry_delay.ToTimedelta().total_seconds():.3f} s")


if __name__ == "__main__":
    match sys.argv[1:]:
        case [address, key]:
            main(address, key)
        case _:
            sys.exit(f"usage: {sys.argv[0]} HOST:PORT KEY")
