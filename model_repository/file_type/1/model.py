"""Tells the type of a file from its bytes: magika's network and its rules around it, without the package itself."""

from __future__ import annotations  # Triton makes the request types only where a model runs

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import onnxruntime
import triton_python_backend_utils as pb_utils

HERE = Path(__file__).parent


class Verdict(NamedTuple):
    """What a content is taken for."""

    label: str
    mime_type: str
    score: float


class TritonPythonModel:
    """CONTENT in; LABEL, MIME_TYPE and SCORE out. Any bytes are good input, none at all is the type `empty`."""

    def initialize(self, args: dict[str, str]) -> None:
        """Read the tables and load the network, on the GPU where Triton placed this instance on one."""
        rules = json.loads((HERE / "model.json").read_bytes())
        if rules["mid_size"] or rules["use_inputs_at_offsets"]:
            raise pb_utils.TritonModelException("these magika weights want features that file_type does not make")
        self._rules: dict[str, Any] = rules
        self._types: dict[str, dict[str, Any]] = json.loads((HERE / "content_types.json").read_bytes())
        self._session = onnxruntime.InferenceSession(HERE / "model.onnx", _options(), providers=_providers(args))

    def execute(self, requests: Sequence[pb_utils.InferenceRequest]) -> list[pb_utils.InferenceResponse]:
        """Judge the contents of all requests, each for itself."""
        inputs = [pb_utils.get_input_tensor_by_name(request, "CONTENT").as_numpy() for request in requests]
        return [_response([self._judge(content) for content in batch.ravel()], batch.shape) for batch in inputs]

    def _judge(self, content: bytes) -> Verdict:
        head = content[: self._rules["block_size"]].lstrip()[: self._rules["beg_size"]]
        if len(head) < self._rules["min_file_size_for_dl"]:
            return self._from_few_bytes(content)
        tail = content[-self._rules["block_size"] :].rstrip()[-self._rules["end_size"] :]
        row = np.full((1, self._rules["beg_size"] + self._rules["end_size"]), self._rules["padding_token"], np.int32)
        row[0, : len(head)] = np.frombuffer(head, np.uint8)
        row[0, row.shape[1] - len(tail) :] = np.frombuffer(tail, np.uint8)
        # One by one: in a batch the network scores a little differently, and an answer would depend on its company.
        return self._from_network(self._session.run(None, {"bytes": row})[0][0])

    def _from_network(self, scores: npt.NDArray[np.float32]) -> Verdict:
        best = int(scores.argmax())
        raw_label = self._rules["target_labels_space"][best]
        label = self._rules["overwrite_map"].get(raw_label, raw_label)
        threshold = self._rules["thresholds"].get(raw_label, self._rules["medium_confidence_threshold"])
        if scores[best] < threshold:
            # An unsure network is still right about text or binary.
            label = "txt" if self._types[label]["is_text"] else "unknown"
        return self._verdict(label, float(scores[best]))

    def _from_few_bytes(self, content: bytes) -> Verdict:
        if not content:
            return self._verdict("empty", 1.0)
        try:
            content[: self._rules["block_size"]].decode()
        except UnicodeDecodeError:
            return self._verdict("unknown", 1.0)
        return self._verdict("txt", 1.0)

    def _verdict(self, label: str, score: float) -> Verdict:
        about = self._types[label]
        fallback = "text/plain" if about["is_text"] else "application/octet-stream"
        return Verdict(label, about["mime_type"] or fallback, score)


def _response(verdicts: list[Verdict], shape: tuple[int, ...]) -> pb_utils.InferenceResponse:
    labels, mime_types, scores = zip(*verdicts, strict=True)
    return pb_utils.InferenceResponse(
        [
            pb_utils.Tensor("LABEL", np.array([label.encode() for label in labels], np.object_).reshape(shape)),
            pb_utils.Tensor("MIME_TYPE", np.array([name.encode() for name in mime_types], np.object_).reshape(shape)),
            pb_utils.Tensor("SCORE", np.array(scores, np.float32).reshape(shape)),
        ]
    )


def _options() -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    # One thread an instance: more throughput comes from more instances, and a small machine keeps a core for the rest.
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return options


def _providers(args: dict[str, str]) -> list[str | tuple[str, dict[str, str]]]:
    if args["model_instance_kind"] == "GPU":
        if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
            cuda = ("CUDAExecutionProvider", {"device_id": args["model_instance_device_id"]})
            return [cuda, "CPUExecutionProvider"]
        pb_utils.Logger.log_warn(f"{args['model_name']}: this onnxruntime has no CUDA (onnxruntime-gpu has), so CPU")
    return ["CPUExecutionProvider"]
