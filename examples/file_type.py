"""What kind of file is this? Asks the model `file_type`, and tells a refusal of Headrace from an error of Triton.

python examples/file_type.py 127.0.0.1:8001 KEY README.md
"""

import sys
from pathlib import Path

import grpc
import numpy as np
from google.rpc.error_details_pb2 import ErrorInfo
from google.rpc.status_pb2 import Status
from tritonclient.grpc import InferenceServerClient, InferenceServerException, InferInput

EDGE_BYTES = 4096
"""The model looks at no more than this much of each end of a file."""


def main(address: str, key: str, path: str) -> None:
    """Print the file's type; end with one line where the call failed."""
    content = Path(path).read_bytes()
    if len(content) > 2 * EDGE_BYTES:
        content = content[:EDGE_BYTES] + content[-EDGE_BYTES:]
    tensor = InferInput("CONTENT", [1, 1], "BYTES")
    tensor.set_data_from_numpy(np.array([[content]], dtype=np.object_))
    headers = {"authorization": f"Bearer {key}"}
    with InferenceServerClient(address) as client:
        try:
            result = client.infer("file_type", [tensor], headers=headers, client_timeout=10)
        except InferenceServerException as error:
            sys.exit(f"{reason_of(error.__context__) or 'no reason of Headrace'}: {error.message()}")
    label, mime = (result.as_numpy(name).item().decode() for name in ("LABEL", "MIME_TYPE"))
    print(f"{path}: {label}, {mime}, sure to {result.as_numpy('SCORE').item():.1%}")


def reason_of(error: object) -> str | None:
    """The reason of a refusal, one of docs/reference/errors.md; None for Triton's own errors."""
    trailing = error.trailing_metadata() if isinstance(error, grpc.Call) else None
    for name, value in trailing or ():
        if name == "grpc-status-details-bin" and isinstance(value, bytes):
            info = ErrorInfo()
            for detail in Status.FromString(value).details:
                if detail.Unpack(info) and info.domain == "headrace":
                    return info.reason
    return None


if __name__ == "__main__":
    match sys.argv[1:]:
        case [address, key, path]:
            main(address, key, path)
        case _:
            sys.exit(f"usage: {sys.argv[0]} HOST:PORT KEY FILE")
