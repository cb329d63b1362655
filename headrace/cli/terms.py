"""The options that say what a tenant is granted: one list, for every command that takes them."""

import inspect
import re
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import wraps
from pathlib import Path
from typing import Annotated, Any

import typer

from headrace.cli.common import USAGE, fail, readable


class Class(StrEnum):
    """What a method is for."""

    INFER = "infer"
    METADATA = "metadata"
    ADMIN = "admin"


class Rank(StrEnum):
    """Whose calls come first."""

    HIGH = "high"
    NORMAL = "normal"
    LOW = "low"


@dataclass(frozen=True, slots=True)
class Terms:
    """What was asked for, as a policy says it below a tenant's name."""

    file: Path | None
    """Says the whole of it, where there is one."""
    stated: Mapping[str, object]
    """What options say. A limit or quota of 0 is none."""

    def over(self, grants: Mapping[str, object]) -> dict[str, object]:
        """What is granted where options win over this."""
        merged = dict(grants)
        for name, value in self.stated.items():
            merged.pop(name, None)
            left = _together(grants.get(name), value) if isinstance(value, dict) else value
            if left:
                merged[name] = left
        return merged

    def told(self, mistakes: str) -> str:
        """Mistakes of a policy, by the names of options where there was no file to have others."""
        if self.file is not None:
            return mistakes
        return _WHOLE.sub(_option, _FIELD.sub(_option, mistakes))


def _together(known: object, stated: Mapping[str, object]) -> dict[str, object]:
    before = dict(known) if isinstance(known, dict) else {}
    if stated.get("calls_per_second") == 0:
        before.pop("burst", None)  # which is one of that rate
    both = {**before, **stated}
    return {name: amount for name, amount in both.items() if amount != 0}


_FIELD = re.compile(r"^(?:(?:limits|quotas)\.(\w+)|(models|allow|certificate)s?\.\d+)", re.MULTILINE)
_WHOLE = re.compile(r"(?:^limits: )(burst)(?= needs)|(?<=burst needs )(calls_per_second)", re.MULTILINE)


def _option(found: re.Match[str]) -> str:
    return f"--{(found[1] or found[2]).replace('_', '-')}"


def takes_terms(command: Callable[..., None]) -> Callable[..., None]:
    """The command with these options, which it gets as `terms`."""
    shared = inspect.signature(_terms).parameters
    own = inspect.signature(command).parameters

    @wraps(command)
    def run(**given: Any) -> None:  # noqa: ANN401  whatever typer reads
        command(terms=_terms(**{name: given.pop(name) for name in shared}), **given)

    parameters = [each for name, each in own.items() if name != "terms"]
    required = [each for each in parameters if each.default is each.empty]
    rest = [each for each in parameters if each.default is not each.empty]
    both = [*required, *shared.values(), *rest]
    # What typer reads: the signature that a caller has to know, which is not that of `run`.
    run.__signature__ = inspect.Signature(both)  # type: ignore[attr-defined]  # functions have it where it is set
    run.__annotations__ = {each.name: each.annotation for each in both}
    return run


def _limit(text: str) -> Any:  # noqa: ANN401  what typer makes of an option
    return typer.Option(metavar="N", min=0, help=text, show_default=False)


def _terms(
    *,
    file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="What it is granted, as YAML: what a policy has below the tenant's name; `-` reads it from here.",
            show_default=False,
        ),
    ] = None,
    models: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATTERN", help="Models that exist for it, as `text_*`. Can be repeated.", callback=readable
        ),
    ] = None,
    allow: Annotated[
        list[Class] | None, typer.Option(help="What it may do. Can be repeated. [default: infer, metadata]")
    ] = None,
    priority: Annotated[Rank | None, typer.Option(help="Kept for the queue; changes nothing yet.")] = None,
    certificates: Annotated[
        list[str] | None,
        typer.Option(
            "--certificate", metavar="NAME", help="A SPIFFE id or DNS name of its certificates. Can be repeated."
        ),
    ] = None,
    no_certificates: Annotated[bool, typer.Option("--no-certificates", help="No certificate stands for it.")] = False,
    calls_per_second: Annotated[float | None, _limit("Calls a second.")] = None,
    burst: Annotated[float | None, _limit("Calls that may come at once.")] = None,
    concurrency: Annotated[int | None, _limit("Calls under way at a time.")] = None,
    bytes_per_second: Annotated[float | None, _limit("Request bytes a second.")] = None,
    request_bytes: Annotated[int | None, _limit("Bytes of the largest request.")] = None,
    calls_per_day: Annotated[int | None, _limit("Calls a day that are answered.")] = None,
    calls_per_month: Annotated[int | None, _limit("Calls a month that are answered.")] = None,
    bytes_per_day: Annotated[int | None, _limit("Bytes a day, of requests and answers.")] = None,
    bytes_per_month: Annotated[int | None, _limit("Bytes a month, of requests and answers.")] = None,
    model_seconds_per_day: Annotated[float | None, _limit("Seconds a day in model servers.")] = None,
    model_seconds_per_month: Annotated[float | None, _limit("Seconds a month in model servers.")] = None,
) -> Terms:
    """What these options say together. Ends the command where they say nothing that can be read."""
    if certificates and no_certificates:
        fail("--certificate and --no-certificates: choose one", code=USAGE)
    for pattern in models or ():
        if re.search(r"[,\s]", pattern):
            meant = " ".join(f"--models {shlex.quote(each)}" for each in re.split(r"[,\s]+", pattern) if each)
            fail(f"--models {shlex.quote(pattern)}: no comma or space; one pattern each: {meant}", code=USAGE)
    limits = {
        "calls_per_second": calls_per_second,
        "burst": burst,
        "concurrency": concurrency,
        "bytes_per_second": bytes_per_second,
        "request_bytes": request_bytes,
    }
    quotas = {
        "calls_per_day": calls_per_day,
        "calls_per_month": calls_per_month,
        "bytes_per_day": bytes_per_day,
        "bytes_per_month": bytes_per_month,
        "model_seconds_per_day": model_seconds_per_day,
        "model_seconds_per_month": model_seconds_per_month,
    }
    stated = {
        "models": models or None,
        "allow": [each.value for each in allow or ()] or None,
        "priority": None if priority is None else priority.value,
        "certificates": [] if no_certificates else certificates or None,
        "limits": {name: amount for name, amount in limits.items() if amount is not None} or None,
        "quotas": {name: amount for name, amount in quotas.items() if amount is not None} or None,
    }
    return Terms(file, {name: value for name, value in stated.items() if value is not None})
