"""Tells what arrived, in few bytes."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    """SHA256 is the digest of CONTENT, in hex."""

    def execute(self, requests: Sequence[pb_utils.InferenceRequest]) -> list[pb_utils.InferenceResponse]:
        """Answer each request by itself."""
        return [_digest(request) for request in requests]


def _digest(request: pb_utils.InferenceRequest) -> pb_utils.InferenceResponse:
    content = pb_utils.get_input_tensor_by_name(request, "CONTENT").as_numpy()[0]
    digest = hashlib.sha256(content).hexdigest().encode()
    return pb_utils.InferenceResponse([pb_utils.Tensor("SHA256", np.array([digest], np.object_))])
