"""Every way in which the gateway refuses a call, as data: a reason, whether trying again can help, and what to do.

Nothing here knows of gRPC; `gateway.status` has the table of codes. The docstring of a leaf class is its message, and
`{name}` in it is filled from the metadata, so that text and documentation can't drift apart and a client finds in the
metadata whatever varies in the text. `docs/reference/errors.md` lists all leaves.

Families say who must act; leaves, the classes with a `reason`, are what is raised.
"""

from collections.abc import Mapping
from functools import cache
from inspect import cleandoc
from typing import ClassVar

_LONGEST_VALUE = 200
"""What a caller sent may be of any length, and comes back in headers, which may not."""


class Refusal(Exception):  # noqa: N818  a refusal is an answer to the caller, not a fault of ours
    """The call was refused."""

    reason: ClassVar[str] = ""
    """Stable, UPPER_SNAKE, part of the API. Empty on families."""
    retriable: ClassVar[bool] = False
    """Whether the same call may succeed later without anybody changing it."""

    def __init__(
        self, message: str | None = None, /, *, retry_after_seconds: float | None = None, **metadata: str
    ) -> None:
        """Refuse with the class's own message, or with `message`. Metadata is told to the caller: no internals."""
        self.metadata: Mapping[str, str] = {name: _shortened(value) for name, value in metadata.items()}
        self.retry_after_seconds = retry_after_seconds
        super().__init__(message if message is not None else _message(type(self), self.metadata))

    @property
    def message(self) -> str:
        """What the caller reads."""
        return str(self.args[0])


def leaves() -> list[type[Refusal]]:
    """Every class that is raised, by reason."""
    found: list[type[Refusal]] = []
    families = [Refusal]
    while families:
        for cls in families.pop().__subclasses__():
            families.append(cls)
            if cls.reason:
                found.append(cls)
    return sorted(found, key=lambda cls: cls.reason)


def _message(cls: type[Refusal], metadata: Mapping[str, str]) -> str:
    text = _text(cls)  # type: ignore[arg-type]  # mypy takes the hash of instances for the class's own
    return text.format_map(_Known(metadata)) if "{" in text else text


@cache
def _text(cls: type[Refusal]) -> str:
    return " ".join(cleandoc(cls.__doc__ or cls.reason).split())


class _Known(dict[str, str]):
    """Metadata that leaves a placeholder as it is where the value is missing."""

    def __missing__(self, name: str) -> str:
        return f"{{{name}}}"


def _shortened(value: str) -> str:
    return value if len(value) <= _LONGEST_VALUE else value[: _LONGEST_VALUE - 1] + "…"


# Who is calling.


class CredentialRefused(Refusal):
    """The caller did not prove who it is."""


class KeyMissing(CredentialRefused):
    """The call carries no API key or token. Send one as metadata, `authorization: Bearer KEY` or `x-api-key: KEY`."""

    reason = "KEY_MISSING"


class KeyInvalid(CredentialRefused):
    """The API key or token is not valid here. Check that it is the right one, sent once, whole (`hr_<id>_<secret>`)."""

    reason = "KEY_INVALID"


class KeyExpired(CredentialRefused):
    """The API key `{key_id}` is not valid at this time: it has expired, or is not valid yet. Ask for another one."""

    reason = "KEY_EXPIRED"


class CertificateUnknown(CredentialRefused):
    """The call carries no API key or token, and its certificate stands for no one tenant here. Ask the operator."""

    reason = "CERTIFICATE_UNKNOWN"


class PermissionRefused(Refusal):
    """The caller is known and may not do this."""


class RoleRequired(PermissionRefused):
    """{method} needs the role `{role}`, which this API key does not have. Ask the operator for a key that has it."""

    reason = "ROLE_REQUIRED"


class TenantUnknown(PermissionRefused):
    """The API key is valid, and its tenant `{tenant}` is granted nothing here. Ask the operator to add the tenant."""

    reason = "TENANT_UNKNOWN"


class MethodForbidden(PermissionRefused):
    """{method} is not granted to this caller: its tenant or the roles of its API key leave it out. Ask the operator."""

    reason = "METHOD_FORBIDDEN"


# What is asked for.


class Unknown(Refusal):
    """What the call names does not exist here."""


class ModelUnknown(Unknown):
    """Request for unknown model: '{model}' is not found. RepositoryIndex lists the models that can be called."""

    reason = "MODEL_UNKNOWN"


class ModelVersionUnknown(Unknown):
    """Request for unknown model: '{model}' version {version} is not found. RepositoryIndex lists the versions."""

    reason = "MODEL_VERSION_UNKNOWN"


class ServiceUnknown(Unknown):
    """There is no service or model '{service}' here whose health this caller may ask for."""

    reason = "SERVICE_UNKNOWN"


class RequestInvalid(Refusal):
    """The request can't be understood."""

    field: ClassVar[str] = ""
    """The field of the request that is wrong, where it is a single one."""


class ModelNameInvalid(RequestInvalid):
    """The model name can't be used: it is empty, or too long to be part of a topic's name."""

    reason = "MODEL_NAME_INVALID"
    field = "model_name"


class ModelVersionInvalid(RequestInvalid):
    """The model version '{version}' is not a number. Leave it empty for the newest ready version."""

    reason = "MODEL_VERSION_INVALID"
    field = "version"


class RequestMalformed(RequestInvalid):
    """The request is not a valid protobuf message of this method. Build it with a stub of the protocol."""

    reason = "REQUEST_MALFORMED"


class RestRequestInvalid(RequestInvalid):
    """The body of this REST call is not a valid request: {field} {problem}."""

    reason = "REST_REQUEST_INVALID"


class OutputNotText(RequestInvalid):
    """The model ran, and its output '{output}' is not UTF-8, as JSON must be. Ask for it with `binary_data` true."""

    reason = "OUTPUT_NOT_TEXT"


class MethodUnknown(Refusal):
    """There is no method {method} here. Reflection lists the methods that there are."""

    reason = "METHOD_UNKNOWN"


class NotOffered(Refusal):
    """The method exists in the protocol, and this gateway does not offer it."""


class SharedMemoryUnsupported(NotOffered):
    """Shared memory does not reach across hosts, so the gateway can't offer it. Send tensors inside the request."""

    reason = "SHARED_MEMORY_UNSUPPORTED"


class RepositoryNameUnsupported(NotOffered):
    """There is one repository, and it has no name. Leave repository_name empty."""

    reason = "REPOSITORY_NAME_UNSUPPORTED"


class StreamingUnsupported(NotOffered):
    """ModelStreamInfer is not offered yet. Call ModelInfer for models that give one response per request."""

    reason = "STREAMING_UNSUPPORTED"


# What is too much.


class TooMuch(Refusal):
    """The call takes more than there is or may be."""


class RequestTooLarge(TooMuch):
    """The request has more than the {limit_bytes} bytes that are taken at most. Send smaller batches."""

    reason = "REQUEST_TOO_LARGE"


class RequestSlow(TooMuch):
    """The request did not arrive whole in the short time that this method waits for one. Send it at once, or again."""

    reason, retriable = "REQUEST_SLOW", True


class AnswerTooLarge(TooMuch):
    """The model ran, and its answer has more bytes than can be brought back. Ask for fewer or smaller outputs."""

    reason = "ANSWER_TOO_LARGE"


class Limited(TooMuch):
    """The caller has used what it may."""

    retriable = True

    def __init__(
        self,
        message: str | None = None,
        /,
        *,
        retry_after_seconds: float | None = None,
        left: tuple[int, int, int] | None = None,
        **metadata: str,
    ) -> None:
        """`left` is told beside the reason: a rate's burst, what is left of it, and seconds until it is whole again."""
        self.left = left
        super().__init__(message, retry_after_seconds=retry_after_seconds, **metadata)


class RateLimited(Limited):
    """The limit of {limit} calls a second for {scope} is used up. Call again after the time given."""

    reason = "RATE_LIMITED"


class BytesLimited(Limited):
    """The limit of {limit} request bytes a second for {scope} is used up. Call again after the time given."""

    reason = "BYTES_LIMITED"


class QuotaExhausted(Limited):
    """The quota of {limit} {what} for {scope} is used up. It begins anew at {until}."""

    reason = "QUOTA_EXHAUSTED"


class ConcurrencyLimited(Limited):
    """The limit of {limit} calls at a time for {scope} is reached. Call again when one of them has ended."""

    reason = "CONCURRENCY_LIMITED"


class GatewayFull(TooMuch):
    """This gateway holds as many calls as it may. Try again after a pause, with back-off."""

    reason, retriable = "GATEWAY_FULL", True


class LogFull(TooMuch):
    """The log does not take records as fast as calls arrive. Try again after a pause, with back-off."""

    reason, retriable = "LOG_FULL", True


# What is away.


class Away(Refusal):
    """A part that the call needs is away."""

    retriable = True


class NoLiveRouter(Away):
    """The model '{model}' is known, and no router that serves it is alive. Try again, or ask the operator."""

    reason = "NO_LIVE_ROUTER"


class ModelNotReady(Away):
    """The model '{model}' is known, and no model server has it ready. Load it, or try again while it is loading."""

    reason = "MODEL_NOT_READY"


class RouterLost(Away):
    """The router that held the call died before it answered, and no other could take the call in time.

    Whether the model ran is not known. Call again.
    """

    reason = "ROUTER_LOST"


class TritonLost(Away):
    """The model server died before it answered, and no other could take the call in time.

    Whether the model ran is not known. Call again.
    """

    reason = "TRITON_LOST"


class SequenceLost(Refusal):
    """The model server that held the state of this call's sequence died, or may have. Begin the sequence anew."""

    reason = "SEQUENCE_LOST"


class GatewayStarting(Away):
    """This gateway does not know yet which models there are: it is starting, or the log is away. Call again."""

    reason = "GATEWAY_STARTING"


class KeysUnavailable(Away):
    """This gateway can't look API keys up yet: its database has not answered since it started. Call again."""

    reason = "KEYS_UNAVAILABLE"


class QuotasUnavailable(Away):
    """This gateway can't tell what is left of the tenant's quotas yet: its database has not answered. Call again."""

    reason = "QUOTAS_UNAVAILABLE"


class LogUnavailable(Away):
    """The log did not take the call in time. Try again after a pause, with back-off."""

    reason = "LOG_UNAVAILABLE"


class ShuttingDown(Away):
    """This gateway is leaving and takes no new calls. Call again: another gateway will answer."""

    reason = "SHUTTING_DOWN"


# What went wrong on the way.


class DeadlineExceeded(Refusal):
    """The deadline passed before the model answered. Allow more time, or send the call when less is waiting."""

    reason = "DEADLINE_EXCEEDED"


class AdminPartialFailure(Refusal):
    """{failed} of {asked} model servers failed: {first_failure}. The others did as asked. Call again for the rest."""

    reason, retriable = "ADMIN_PARTIAL_FAILURE", True


class AdminTimeout(DeadlineExceeded):
    """{missing} of {asked} model servers did not answer in time, and may still do as asked. Look, then call again."""

    reason, retriable = "ADMIN_TIMEOUT", True


class Internal(Refusal):
    """The gateway failed in a way that nobody foresaw. Tell its operator the call id {call_id}."""

    reason = "INTERNAL"
