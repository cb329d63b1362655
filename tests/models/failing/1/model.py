"""Fails every request, in the way that the request asks for."""

from __future__ import annotations

from collections.abc import Sequence

import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    """The error's text is MESSAGE, its code is CODE (a name such as UNAVAILABLE), or INTERNAL where none is given."""

    def execute(self, requests: Sequence[pb_utils.InferenceRequest]) -> list[pb_utils.InferenceResponse]:
        """Answer each request with its error."""
        return [_fail(request) for request in requests]


def _fail(request: pb_utils.InferenceRequest) -> pb_utils.InferenceResponse:
    given = {tensor.name(): tensor.as_numpy()[0].decode() for tensor in request.inputs()}
    code = getattr(pb_utils.TritonError, given.get("CODE", "INTERNAL"))
    return pb_utils.InferenceResponse([], pb_utils.TritonError(given["MESSAGE"], code))
