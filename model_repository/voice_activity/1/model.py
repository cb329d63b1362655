"""Hears speech in a stream of audio, chunk by chunk: Silero's network, and the state of each stream in between."""

from __future__ import annotations  # Triton makes the request types only where a model runs

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime
import triton_python_backend_utils as pb_utils

HERE = Path(__file__).parent
SAMPLES_PER_SECOND = np.array(16_000, np.int64)
OVERLAP = 64
"""The network hears each chunk after this many samples of the one before."""

Floats = npt.NDArray[np.float32]


@dataclass
class Stream:
    """One sequence between two of its chunks."""

    memory: Floats = field(default_factory=lambda: np.zeros((2, 128), np.float32))
    overlap: Floats = field(default_factory=lambda: np.zeros(OVERLAP, np.float32))
    heard_at: float = 0.0


class TritonPythonModel:
    """AUDIO in, PROBABILITY out. Triton brings the chunks of a sequence here in order, one per batch."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the network, on the GPU where Triton placed this instance on one."""
        batching = json.loads(args["model_config"])["sequence_batching"]
        self._idle_seconds = int(batching["max_sequence_idle_microseconds"]) / 1e6
        self._streams: dict[int | str, Stream] = {}
        self._session = onnxruntime.InferenceSession(HERE / "model.onnx", _options(), providers=_providers(args))

    def execute(self, requests: Sequence[pb_utils.InferenceRequest]) -> list[pb_utils.InferenceResponse]:
        """Run one chunk of each of several sequences at once; a chunk that can't be heard fails alone."""
        chunks = [self._chunk(request) for request in requests]
        heard = [chunk for chunk in chunks if isinstance(chunk, tuple)]
        probabilities = iter(self._hear(heard))
        responses = [
            pb_utils.InferenceResponse([pb_utils.Tensor("PROBABILITY", next(probabilities).reshape(1, 1))])
            if isinstance(chunk, tuple)
            else pb_utils.InferenceResponse([], chunk)
            for chunk in chunks
        ]
        for request in requests:
            if _control(request, "END"):
                self._streams.pop(request.correlation_id(), None)
        return responses

    def _chunk(self, request: pb_utils.InferenceRequest) -> tuple[Stream, Floats] | pb_utils.TritonError:
        # Not the CORRID control: its type is either number or text, and Triton garbles an id of the other kind.
        sequence: int | str = request.correlation_id()
        if _control(request, "START"):
            self._forget_idle()
            self._streams[sequence] = Stream()
        stream = self._streams.get(sequence)
        if stream is None:
            return _bad(f"sequence {sequence} is not known here: begin it again with its start flag set")
        audio: Floats = pb_utils.get_input_tensor_by_name(request, "AUDIO").as_numpy()[0]
        if not np.isfinite(audio).all():
            # One such sample would stay in the stream's memory and spoil every later answer.
            return _bad("AUDIO holds a sample that is not a finite number")
        return stream, audio

    def _hear(self, chunks: list[tuple[Stream, Floats]]) -> Floats:
        if not chunks:
            return np.empty((0, 1), np.float32)
        heard = np.stack([np.concatenate([stream.overlap, audio]) for stream, audio in chunks])
        memory = np.stack([stream.memory for stream, _ in chunks], axis=1)
        probabilities: Floats
        probabilities, memory = self._session.run(None, {"input": heard, "state": memory, "sr": SAMPLES_PER_SECOND})
        now = time.monotonic()
        for at, (stream, audio) in enumerate(chunks):
            stream.memory, stream.overlap, stream.heard_at = memory[:, at], audio[-OVERLAP:].copy(), now
        return probabilities

    def _forget_idle(self) -> None:
        """Triton drops an idle sequence without a word; twice its patience is a safe sign that it did."""
        before = time.monotonic() - 2 * self._idle_seconds
        for sequence in [sequence for sequence, stream in self._streams.items() if stream.heard_at < before]:
            del self._streams[sequence]


def _control(request: pb_utils.InferenceRequest, name: str) -> int:
    return int(pb_utils.get_input_tensor_by_name(request, name).as_numpy().item())


def _bad(message: str) -> pb_utils.TritonError:
    return pb_utils.TritonError(message, pb_utils.TritonError.INVALID_ARG)


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
