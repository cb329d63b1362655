"""Gives back what it is given, of every datatype that Python's arrays have."""

from __future__ import annotations

from collections.abc import Sequence

import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    """OUT_x is IN_x, for each that is given."""

    def execute(self, requests: Sequence[pb_utils.InferenceRequest]) -> list[pb_utils.InferenceResponse]:
        """Answer each request by itself."""
        return [
            pb_utils.InferenceResponse(
                [
                    pb_utils.Tensor(tensor.name().replace("IN_", "OUT_"), tensor.as_numpy())
                    for tensor in request.inputs()
                ]
            )
            for request in requests
        ]
