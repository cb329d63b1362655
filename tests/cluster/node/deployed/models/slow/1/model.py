"""Takes as long as each call says, and to load as long as its settings say."""

from __future__ import annotations  # Triton makes the request types only where a model runs

import json
import time
from collections.abc import Sequence

import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    """ECHO is SECONDS, whose first number is how long to wait."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load, slowly if asked to."""
        time.sleep(float(json.loads(args["model_config"])["parameters"]["load_seconds"]["string_value"]))

    def execute(self, requests: Sequence[pb_utils.InferenceRequest]) -> list[pb_utils.InferenceResponse]:
        """Answer each request by itself, in order."""
        return [_answer(request) for request in requests]


def _answer(request: pb_utils.InferenceRequest) -> pb_utils.InferenceResponse:
    asked = pb_utils.get_input_tensor_by_name(request, "SECONDS").as_numpy()
    time.sleep(float(asked[0][0]))
    return pb_utils.InferenceResponse([pb_utils.Tensor("ECHO", asked)])
