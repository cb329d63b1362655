"""A person's way to call a gateway: tritonclient, with metadata deciding shapes and types, and errors in one line."""

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import grpc
import numpy as np
import numpy.typing as npt
from google.protobuf.message import DecodeError
from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status
from tritonclient.grpc import InferenceServerClient, InferenceServerException, InferInput
from tritonclient.utils import triton_to_np_dtype

MAX_MESSAGE_BYTES = 66 << 20
QUESTION_SECONDS = 10.0

Tensor = npt.NDArray[Any]  # Any: the model decides


class CallError(Exception):
    """A call failed; the text is what the server said, in one line."""


class InputError(Exception):
    """What the user gave does not fit the model's inputs; the text names the input."""


@dataclass(frozen=True, kw_only=True)
class TensorShape:
    """One input or output as the model declares it."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    """-1 where any size goes."""

    def __str__(self) -> str:
        return f"{self.name} {self.datatype}[{','.join(map(str, self.shape))}]"


@dataclass(frozen=True, kw_only=True)
class Model:
    """One model of the registry."""

    name: str
    version: str
    state: str
    reason: str
    inputs: tuple[TensorShape, ...] = ()
    outputs: tuple[TensorShape, ...] = ()


class Gateway:
    """A connection to a gateway, for a few calls. Every method raises CallError."""

    def __init__(self, url: str, key: str | None, *, tls_ca: Path | None = None) -> None:
        """`url` is `HOST:PORT`; `key` is sent with every call, encrypted where `tls_ca` says who may sign for `url`."""
        self._url = url
        self._tls_ca = tls_ca
        self._headers = {"authorization": f"Bearer {key}"} if key else {}
        self._client: Any = None  # Any: tritonclient is untyped

    def __enter__(self) -> Self:
        limits = [
            ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
            ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
        ]
        authority = {} if self._tls_ca is None else {"ssl": True, "root_certificates": str(self._tls_ca)}
        self._client = InferenceServerClient(self._url, channel_args=limits, **authority)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.close()

    def models(self) -> list[Model]:
        """The registry, by name; inputs and outputs of those that are ready."""
        index = self._ask("get_model_repository_index")
        rows = [
            Model(name=entry.name, version=entry.version, state=entry.state or "UNKNOWN", reason=entry.reason)
            for entry in index.models
        ]
        return sorted((self._completed(row) for row in rows), key=lambda row: (row.name, row.version))

    def _completed(self, row: Model) -> Model:
        if row.state != "READY":
            return row
        inputs, outputs = self.metadata(row.name, row.version)
        return Model(
            name=row.name, version=row.version, state=row.state, reason=row.reason, inputs=inputs, outputs=outputs
        )

    def metadata(self, model: str, version: str = "") -> tuple[tuple[TensorShape, ...], tuple[TensorShape, ...]]:
        """A model's inputs and outputs."""
        told = self._ask("get_model_metadata", model_name=model, model_version=version)
        return _shapes(told.inputs), _shapes(told.outputs)

    def infer(
        self, model: str, inputs: Mapping[str, Tensor], *, version: str = "", seconds: float
    ) -> dict[str, Tensor]:
        """Run the model once; outputs by name, in the model's order."""
        asked = []
        declared, outputs = self.metadata(model, version)
        datatypes = {tensor.name: tensor.datatype for tensor in declared}
        for name, values in inputs.items():
            tensor = InferInput(name, list(values.shape), datatypes.get(name, "BYTES"))
            tensor.set_data_from_numpy(values)
            asked.append(tensor)
        try:
            result = self._client.infer(
                model, asked, model_version=version, headers=self._headers, client_timeout=seconds
            )
        except InferenceServerException as exc:
            raise CallError(self._one_line(exc)) from None
        names = [output.name for output in result.get_response().outputs] or [output.name for output in outputs]
        return {name: result.as_numpy(name) for name in names}

    def _ask(self, method: str, **arguments: str) -> Any:  # noqa: ANN401  tritonclient is untyped
        try:
            return getattr(self._client, method)(headers=self._headers, client_timeout=QUESTION_SECONDS, **arguments)
        except InferenceServerException as exc:
            raise CallError(self._one_line(exc)) from None

    def _one_line(self, exc: InferenceServerException) -> str:
        status = (exc.status() or "").removeprefix("StatusCode.")
        reason, wait = _told(exc.__context__)
        text = " ".join((exc.message() or "no reason given").split())
        if status == "UNAVAILABLE" and "connect" in text.lower():
            if self._tls_ca is not None:
                return f"no gateway that {self._tls_ca} vouches for answers at {self._url}: is it running, with TLS?"
            hints = "headrace up, headrace status; a port-forward ends with its pod; --tls-ca for TLS"
            return f"no gateway answers at {self._url}: is it running? ({hints})"
        said = reason or status
        return f"{said}: {text}{wait}" if said else text


def _told(error: object) -> tuple[str, str]:
    """The gateway's reason, and when to call again; empty where it gives none, as for what the model server said."""
    info, retry = ErrorInfo(), RetryInfo()
    trailing = error.trailing_metadata() if isinstance(error, grpc.Call) else None
    for name, value in trailing or ():
        if name == "grpc-status-details-bin" and isinstance(value, bytes):
            with suppress(DecodeError):  # a model server may put there what it likes
                for detail in Status.FromString(value).details:
                    _ = detail.Unpack(info) or detail.Unpack(retry)
    wait = f" (in {retry.retry_delay.ToTimedelta().total_seconds():.1f} s)" if retry.HasField("retry_delay") else ""
    return info.reason, wait


def _shapes(tensors: Sequence[Any]) -> tuple[TensorShape, ...]:  # Any: tritonclient's messages
    return tuple(TensorShape(name=t.name, datatype=t.datatype, shape=tuple(t.shape)) for t in tensors)


def parse_inputs(given: Sequence[str], declared: Sequence[TensorShape]) -> dict[str, Tensor]:
    """`NAME=VALUE` texts as the tensors that a model declares. Raises InputError.

    VALUE is JSON (a number or nested lists), plain text for BYTES, or `@FILE`: its bytes for BYTES, numpy's format for
    `.npy`, JSON otherwise. A value without the batch's dimension gets it.
    """
    by_name = {tensor.name: tensor for tensor in declared}
    wanted = ", ".join(map(str, declared))
    tensors: dict[str, Tensor] = {}
    for item in given:
        name, equals, value = item.partition("=")
        if not equals or name not in by_name:
            raise InputError(f"--input {item[:60]}: expected NAME=VALUE with one of {wanted}")
        tensors[name] = _fitted(_value(value, by_name[name]), by_name[name])
    if missing := [str(tensor) for tensor in declared if tensor.name not in tensors]:
        raise InputError(f"missing: {', '.join(missing)}; give each as --input NAME=VALUE or --input NAME=@FILE")
    return tensors


def _value(text: str, tensor: TensorShape) -> Tensor:
    if text.startswith("@"):
        return _file_value(Path(text[1:]), tensor)
    if tensor.datatype == "BYTES" and not text.lstrip().startswith(("[", '"')):
        return np.array([text.encode()], np.object_)
    return _json_value(text, tensor)


def _file_value(path: Path, tensor: TensorShape) -> Tensor:
    try:
        if path.suffix == ".npy":
            loaded: Tensor = np.load(path, allow_pickle=False)
            return loaded.astype(triton_to_np_dtype(tensor.datatype), copy=False)
        content = path.read_bytes()
        return np.array([content], np.object_) if tensor.datatype == "BYTES" else _json_value(content.decode(), tensor)
    except OSError as exc:
        raise InputError(f"{tensor.name}: can't read {path}: {exc.strerror}") from None
    except ValueError as exc:
        raise InputError(f"{tensor.name}: {path}: {exc}") from None


def _json_value(text: str, tensor: TensorShape) -> Tensor:
    try:
        values = json.loads(text)
        if tensor.datatype == "BYTES":
            flat = np.array(values, np.object_)
            return np.array([str(value).encode() for value in flat.ravel()], np.object_).reshape(flat.shape)
        return _exact(np.array(values), triton_to_np_dtype(tensor.datatype))
    except (ValueError, TypeError, OverflowError) as exc:
        raise InputError(
            f"{tensor.name}: expected {tensor.datatype} values as JSON, such as [1, 2, 3] ({exc})"
        ) from None


def _exact(values: Tensor, kind: npt.DTypeLike) -> Tensor:
    """Numbers as another type. Raises ValueError where a whole number would not survive it."""
    if values.dtype.kind not in "iubf":
        raise ValueError("not all of it are numbers, or the lists differ in length")
    converted = values.astype(kind)
    if converted.dtype.kind in "iub" and not np.array_equal(converted, values):
        raise ValueError(f"a number does not fit into {converted.dtype.name}")
    return converted


def _fitted(values: Tensor, tensor: TensorShape) -> Tensor:
    """The values in the declared shape, where they are enough for exactly one way to do so."""
    if values.ndim == len(tensor.shape) and all(d in (-1, n) for d, n in zip(tensor.shape, values.shape, strict=True)):
        return values
    shape = list(tensor.shape)
    if shape and shape[0] == -1 and -1 in shape[1:]:
        shape[0] = 1  # a batch of one; the other open dimension takes the values
    if shape.count(-1) <= 1:
        try:
            return values.reshape(shape)
        except ValueError:
            pass
    raise InputError(f"{tensor} does not take values of shape {list(values.shape)}")
