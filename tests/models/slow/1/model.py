"""Takes as long as it is told, one request after the other."""

from __future__ import annotations

import time
from collections.abc import Sequence

import triton_python_backend_utils as pb_utils

LOOK_SECONDS = 0.005


class TritonPythonModel:
    """WAITED is MILLISECONDS, after so many of them; a cancelled request ends early with CANCELLED."""

    def execute(self, requests: Sequence[pb_utils.InferenceRequest]) -> list[pb_utils.InferenceResponse]:
        """Wait for each request in turn."""
        return [_wait(request) for request in requests]


def _wait(request: pb_utils.InferenceRequest) -> pb_utils.InferenceResponse:
    milliseconds = pb_utils.get_input_tensor_by_name(request, "MILLISECONDS").as_numpy()
    until = time.monotonic() + int(milliseconds[0]) / 1000
    while (left := until - time.monotonic()) > 0:
        if request.is_cancelled():
            return pb_utils.InferenceResponse([], pb_utils.TritonError("was cancelled", pb_utils.TritonError.CANCELLED))
        time.sleep(min(left, LOOK_SECONDS))
    return pb_utils.InferenceResponse([pb_utils.Tensor("WAITED", milliseconds)])
