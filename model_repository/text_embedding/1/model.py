"""Embeds texts: the mean of wordllama's token vectors, computed with its weights and without the package itself."""

from __future__ import annotations  # Triton makes the request types only where a model runs

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import triton_python_backend_utils as pb_utils
from safetensors.numpy import load_file
from tokenizers import Tokenizer

HERE = Path(__file__).parent


class TritonPythonModel:
    """TEXT (UTF-8) in, EMBEDDING out, not normalised. A text without tokens embeds to zeros."""

    def initialize(self, args: dict[str, str]) -> None:  # noqa: ARG002  Triton's signature
        """Load the table and the tokenizer."""
        self._tokenizer = Tokenizer.from_file(str(HERE / "tokenizer.json"))
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._table = load_file(HERE / "embedding.safetensors")["embedding.weight"].astype(np.float32)

    def execute(self, requests: Sequence[pb_utils.InferenceRequest]) -> list[pb_utils.InferenceResponse]:
        """Tokenize the texts of all requests together; a request with a text that is not UTF-8 fails alone."""
        texts: list[str] = []
        counts: list[int | pb_utils.TritonError] = []
        for request in requests:
            batch = pb_utils.get_input_tensor_by_name(request, "TEXT").as_numpy().ravel()
            try:
                texts += [text.decode() for text in batch]
                counts.append(len(batch))
            except UnicodeDecodeError as error:
                counts.append(pb_utils.TritonError(f"TEXT is not UTF-8: {error}", pb_utils.TritonError.INVALID_ARG))
        vectors = iter(self._embed(texts))
        return [
            pb_utils.InferenceResponse([pb_utils.Tensor("EMBEDDING", np.stack([next(vectors) for _ in range(count)]))])
            if isinstance(count, int)
            else pb_utils.InferenceResponse([], count)
            for count in counts
        ]

    def _embed(self, texts: list[str]) -> list[npt.NDArray[np.float32]]:
        encodings = self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        return [self._mean(encoding.ids) for encoding in encodings]

    def _mean(self, token_ids: list[int]) -> npt.NDArray[np.float32]:
        # Each distinct token is read once, so that memory stays below the table's own size however long the text.
        distinct, repeats = np.unique(np.array(token_ids, np.int64), return_counts=True)
        total: npt.NDArray[np.float32] = repeats.astype(np.float32) @ self._table[distinct]
        return total / np.float32(max(len(token_ids), 1))
