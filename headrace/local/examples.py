"""The calls that `headrace up` prints to paste.

Tests run all but the last as they stand: perf_analyzer's wheel needs a newer C library than Debian 12 has.
"""

import shlex
import sys
from dataclasses import dataclass

SIMPLE_PYTHON = """\
{python} - <<'EOF'
import numpy as np
from tritonclient.grpc import InferenceServerClient, InferInput

client = InferenceServerClient("{url}")
inputs = [InferInput(name, [1, 16], "INT32") for name in ("INPUT0", "INPUT1")]
inputs[0].set_data_from_numpy(np.arange(16, dtype=np.int32).reshape(1, 16))
inputs[1].set_data_from_numpy(np.ones((1, 16), np.int32))
result = client.infer("simple", inputs, headers={{"authorization": {header!r}}})
print(result.as_numpy("OUTPUT0"))
EOF"""

EMBEDDING_GRPCURL = """\
grpcurl -plaintext -H {header} -d '{{
  "model_name": "text_embedding",
  "inputs": [{{"name": "TEXT", "datatype": "BYTES", "shape": [1, 1],
              "contents": {{"bytes_contents": ["SGVsbG8sIGhlYWRyYWNl"]}}}}]
}}' {url} inference.GRPCInferenceService/ModelInfer"""

EMBEDDING_CURL = """\
curl -s -H {header} http://{http}/v2/models/text_embedding/infer -d '{{
  "inputs": [{{"name": "TEXT", "datatype": "BYTES", "shape": [1, 1], "data": ["Hello, headrace"]}}]
}}'"""

PERF_ANALYZER = "perf_analyzer -m simple -u {url} -i grpc -H {tight_header} --concurrency-range 8"
"""Its `-H` goes into the gRPC metadata of every call, a space after the colon included, and that would not be a key."""


@dataclass(frozen=True)
class Example:
    """One call to paste into a shell."""

    title: str
    command: str


def examples(url: str, http: str, key: str) -> tuple[Example, ...]:
    """Calls to the gateway at `url`, and by REST at `http`, with its key."""
    bearer = f"Bearer {key}"
    header = shlex.quote(f"authorization: {bearer}")
    python = shlex.quote(sys.executable)
    return (
        Example("Python (tritonclient)", SIMPLE_PYTHON.format(python=python, url=url, header=bearer)),
        Example("curl (REST)", EMBEDDING_CURL.format(http=http, header=header)),
        Example("grpcurl", EMBEDDING_GRPCURL.format(url=url, header=header)),
        Example("perf_analyzer", PERF_ANALYZER.format(url=url, tight_header=shlex.quote(f"authorization:{bearer}"))),
    )
