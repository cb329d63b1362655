"""Takes as long as it is told, or until it is released, one request after the other."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils

LOOK_SECONDS = 0.005


class TritonPythonModel:
    """WAITED is MILLISECONDS, after so many of them, or as soon as the file is there that RELEASE may name.

    A cancelled request ends early with CANCELLED.
    BEGUN counts the requests that came this far, this one and cancelled ones among them. Triton's statistics
    tell of a request some time after its answer; this count is exact.
    """

    def initialize(self, args: Mapping[str, str]) -> None:  # noqa: ARG002  Triton's signature
        """Begin to count."""
        self._begun = 0

    def execute(self, requests: Sequence[pb_utils.InferenceRequest]) -> list[pb_utils.InferenceResponse]:
        """Wait for each request in turn."""
        return [self._wait(request) for request in requests]

    def _wait(self, request: pb_utils.InferenceRequest) -> pb_utils.InferenceResponse:
        self._begun += 1
        begun = pb_utils.Tensor("BEGUN", np.array([self._begun], np.int32))
        given = {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}
        milliseconds = given["MILLISECONDS"]
        release = Path(given["RELEASE"][0].decode()) if "RELEASE" in given else None
        until = time.monotonic() + int(milliseconds[0]) / 1000
        while (left := until - time.monotonic()) > 0 and not (release and release.exists()):
            if request.is_cancelled():
                error = pb_utils.TritonError("was cancelled", pb_utils.TritonError.CANCELLED)
                return pb_utils.InferenceResponse([], error)
            time.sleep(min(left, LOOK_SECONDS))
        return pb_utils.InferenceResponse([pb_utils.Tensor("WAITED", milliseconds), begun])
