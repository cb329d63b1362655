"""`headrace models` and `headrace infer`: calls to a gateway."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from headrace.cli.common import USAGE, AsJson, StateDir, fail, running_stack
from headrace.cli.table import table

if TYPE_CHECKING:
    from collections.abc import Mapping

    from headrace.local.client import Gateway, Tensor, TensorShape

SHOWN_VALUES = 8

Url = Annotated[
    str | None,
    typer.Option(metavar="HOST:PORT", help="The gateway. [default: the running stack's]", show_default=False),
]
KeyFile = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="A file that holds the key. [default: the running stack's, for its own gateways]",
        show_default=False,
    ),
]
TlsCa = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Certificates (PEM) that may sign the gateway's: the call is encrypted. [default: no TLS]",
        show_default=False,
    ),
]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command(name="models")(_models)
    app.command(name="infer")(_infer)


def _models(
    url: Url = None,
    key_file: KeyFile = None,
    tls_ca: TlsCa = None,
    state_dir: StateDir = None,
    as_json: AsJson = False,
) -> None:
    """Show the models that the gateway knows.

    For example:

        headrace models

        headrace models --url gateway.example:8001 --key-file ./key --tls-ca ./ca.pem --json
    """
    from headrace.local.client import CallError  # noqa: PLC0415  slow to import

    try:
        with _gateway(url, key_file, tls_ca, state_dir) as gateway:
            models = gateway.models()
    except CallError as exc:
        fail(str(exc))
    if as_json:
        told = [
            {
                "name": model.name,
                "version": model.version,
                "state": model.state,
                "reason": model.reason,
                "inputs": [str(tensor) for tensor in model.inputs],
                "outputs": [str(tensor) for tensor in model.outputs],
            }
            for model in models
        ]
        typer.echo(json.dumps(told, indent=1))
        return
    rows = [
        (model.name, model.version or "-", model.state, _listed(model.inputs), _listed(model.outputs) or model.reason)
        for model in models
    ]
    typer.echo(table(("MODEL", "VERSION", "STATE", "INPUTS", "OUTPUTS"), rows) if rows else "no models yet")


def _listed(tensors: "tuple[TensorShape, ...]") -> str:
    return ", ".join(map(str, tensors))


def _infer(
    model: Annotated[str, typer.Argument(help="The model's name.")],
    *,
    values: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[VALUE]...",
            help="Inputs in the model's order: a path for `file_type`, a text for `text_embedding`, else as --input.",
            show_default=False,
        ),
    ] = None,
    inputs: Annotated[
        list[str] | None,
        typer.Option(
            "--input",
            metavar="NAME=VALUE",
            help="One input: JSON, text, or @FILE (raw bytes, .npy, JSON).",
            show_default=False,
        ),
    ] = None,
    version: Annotated[str, typer.Option(help="The model's version; the newest where not given.")] = "",
    timeout: Annotated[float, typer.Option(min=0.001, help="The call's deadline, in seconds.")] = 60.0,
    url: Url = None,
    key_file: KeyFile = None,
    tls_ca: TlsCa = None,
    state_dir: StateDir = None,
    as_json: AsJson = False,
) -> None:
    """Call a model once and print its answer.

    For example:

        headrace infer file_type README.md

        headrace infer text_embedding "water turns the wheel"

        headrace infer simple --input 'INPUT0=[0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15]' --input INPUT1=@YOURS.npy --json
    """
    from headrace.local.client import CallError, InputError, parse_inputs  # noqa: PLC0415  slow to import

    try:
        with _gateway(url, key_file, tls_ca, state_dir) as gateway:
            declared, _ = gateway.metadata(model, version)
            given = _positional(model, values or [], declared) + (inputs or [])
            outputs = gateway.infer(model, parse_inputs(given, declared), version=version, seconds=timeout)
    except InputError as exc:
        fail(str(exc), code=USAGE)
    except CallError as exc:
        fail(str(exc))
    if as_json:
        typer.echo(json.dumps({name: _plain(values) for name, values in outputs.items()}))
    else:
        typer.echo("\n".join(_shown(model, outputs)))


def _positional(model: str, values: list[str], declared: "tuple[TensorShape, ...]") -> list[str]:
    if len(values) > len(declared):
        fail(f"{model} takes {len(declared)} inputs: {_listed(declared)}", code=USAGE)
    if model == "file_type":
        values = [f"@{value.removeprefix('@')}" for value in values]
    return [f"{tensor.name}={value}" for tensor, value in zip(declared, values, strict=False)]


def _gateway(url: str | None, key_file: Path | None, tls_ca: Path | None, state_dir: Path | None) -> "Gateway":
    from headrace.local.client import Gateway  # noqa: PLC0415  slow to import
    from headrace.runtime.tls import check_authority  # noqa: PLC0415  the same

    stack = running_stack(state_dir)
    if url is None:
        if stack is None:
            fail("no stack runs here: start one with `headrace up`, or name a gateway with --url and --key-file")
        url = stack.endpoints.grpc[0]
    # It has the admin role, and what answers at another address may be anybody's.
    if key_file is None and stack is not None and url in stack.endpoints.grpc:
        key_file = Path(stack.key_file)
    try:
        key = key_file.read_text(encoding="utf-8").strip() if key_file else None
    except OSError as exc:
        fail(f"can't read the key file {key_file}: {exc.strerror}", code=USAGE)
    try:
        if tls_ca is not None:
            check_authority(tls_ca)
    except ValueError as exc:
        fail(str(exc), code=USAGE)
    return Gateway(url, key, tls_ca=tls_ca)


def _plain(values: "Tensor") -> object:
    if values.dtype.kind != "O":
        return values.tolist()
    return [_text(value) for value in values.ravel().tolist()]


def _text(value: bytes) -> str:
    return value.decode("utf-8", "backslashreplace")


def _shown(model: str, outputs: "Mapping[str, Tensor]") -> list[str]:
    if model == "file_type" and {"LABEL", "MIME_TYPE", "SCORE"} <= outputs.keys():
        label, mime = (_text(outputs[name].ravel()[0]) for name in ("LABEL", "MIME_TYPE"))
        return [f"{label}  {mime}  {float(outputs['SCORE'].ravel()[0]):.3f}"]
    return [f"{name} {values.dtype}{list(values.shape)}: {_few(values)}" for name, values in outputs.items()]


def _few(values: "Tensor") -> str:
    flat = values.ravel()
    many = flat.size > 2 * SHOWN_VALUES
    texts = [_text(v) if isinstance(v, bytes) else f"{v:.6g}" for v in flat[: SHOWN_VALUES if many else None].tolist()]
    return " ".join(texts) + (f" … ({flat.size} values)" if many else "")
