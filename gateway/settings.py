"""What the gateway reads from the environment: `HEADRACE_GATEWAY__…` and the sections shared with the router."""

from collections.abc import Mapping
from contextlib import suppress
from ipaddress import ip_address
from typing import Annotated, ClassVar, Literal, Self, get_args
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, model_validator

from headrace.bus.settings import MEBIBYTE, KafkaSettings, PoolSettings, ReplyTrustSettings, TopicSettings
from headrace.runtime.settings import Port, ProcessSettings, ReadableFile, Section, TraceSettings
from headrace.runtime.tls import check_authority, check_certificate
from headrace.store.settings import DatabaseSettings


class GrpcSettings(Section):
    """The port that callers use."""

    host: str = "0.0.0.0"  # noqa: S104  a server in a pod; the local stack sets loopback
    port: Port = 8001
    tls_certificate_file: ReadableFile | None = None
    tls_key_file: ReadableFile | None = None
    tls_client_ca_file: ReadableFile | None = None
    """The authorities of callers' certificates. Set: nobody connects without a certificate that they signed, and the
    policy may say whose it is."""
    connection_age_seconds: Annotated[float, Field(ge=1)] = 30.0
    """A connection as old as this, give or take a tenth, takes no new calls (GOAWAY) and lets those that run end: its
    client connects anew, and so finds new gateways and leaves one that is going. Where a balancer spreads connections,
    not calls, a longer `DRAIN__NOTICE_SECONDS` makes a restart that no caller notices."""

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if (self.tls_certificate_file is None) != (self.tls_key_file is None):
            raise ValueError("tls_certificate_file and tls_key_file go together")
        if self.tls_certificate_file is not None and self.tls_key_file is not None:
            check_certificate(self.tls_certificate_file, self.tls_key_file)
        if self.tls_client_ca_file is not None:
            if self.tls_certificate_file is None:
                raise ValueError("tls_client_ca_file needs tls_certificate_file and tls_key_file beside it")
            check_authority(self.tls_client_ca_file)
        return self


class ReplySettings(Section):
    """The port that routers use to send answers home."""

    host: str = "0.0.0.0"  # noqa: S104  a server in a pod; the local stack sets loopback
    port: Port = 8003
    advertised_host: str | None = None
    """The name or address under which routers reach this gateway; in a pod, the pod's IP. Unset: `host`."""

    @model_validator(mode="after")
    def _reachable(self) -> Self:
        if self.advertised_host is None and self.host in {"0.0.0.0", "::"}:  # noqa: S104  compared, not bound
            raise ValueError(f"routers can't dial {self.host}: set advertised_host to this gateway's name or address")
        return self


class AdminSettings(Section):
    """The plain HTTP port for probes and metrics; never exposed to callers."""

    host: str = "0.0.0.0"  # noqa: S104  a server in a pod; the local stack sets loopback
    port: Port = 8002


Algorithm = Literal[
    "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"
]  # only signatures: what checks one can't make one
Role = Literal["admin", "observer", "user"]
Provider = Literal["key_file", "database", "development_key", "tokens", "certificate"]


def _trustworthy(url: str) -> str:
    parts = urlsplit(url)
    local = parts.hostname == "localhost"
    with suppress(ValueError):
        local = local or ip_address(parts.hostname or "").is_loopback
    if not parts.hostname or not (parts.scheme == "https" or (parts.scheme == "http" and local)):
        raise ValueError("must be https://…, or http://… to this machine: whoever changes the keys can be anybody")
    if parts.username is not None or parts.password is not None:
        raise ValueError("must hold no user and no password: public keys need none")
    return url


class TokenIssuerSettings(Section):
    """An identity provider whose tokens (JWT, as OpenID Connect has them) are taken beside keys.

    There may be several, each by a name of your choice.
    """

    issuer: Annotated[str, Field(min_length=1)]
    """What its tokens say in `iss`, to the letter."""
    audience: Annotated[str, Field(min_length=1)]
    """What `aud` must be or contain: the name of this gateway at the provider."""
    jwks_url: Annotated[str, AfterValidator(_trustworthy)] | None = None
    """Where the provider publishes its keys (`jwks_uri`): https, or http on this machine. This or `jwks_file`."""
    jwks_file: ReadableFile | None = None
    """The keys as a file, a JSON Web Key Set; looked at every second."""
    algorithms: Annotated[tuple[Algorithm, ...], Field(min_length=1)] = ("RS256", "ES256", "EdDSA")
    """The signatures that are taken."""
    leeway_seconds: Annotated[float, Field(ge=0, le=300)] = 30.0
    """How far the provider's clock and ours may be apart."""
    max_age_seconds: Annotated[float, Field(gt=0)] | None = None
    """How old a token may be by its `iat`, whatever its `exp` says. Unset: `exp` alone counts."""
    tenant_claim: Annotated[str, Field(min_length=1)] = "tenant"
    """The claim that names the tenant; a token without it is refused. `sub` makes every subject a tenant."""
    tenants: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,128}( [A-Za-z0-9._-]{1,128})*$")] | None = None
    """The tenants that its tokens may name, with a blank between them; a token that names another is refused.

    Unset: the issuer is trusted for every tenant, those of other issuers and of keys too."""
    roles_claim: Annotated[str, Field(min_length=1)] = "roles"
    """The claim with the roles: a list, or one text with blanks between them, as `scope` is."""
    role_map: Mapping[str, Role] = {}
    """Which of our roles a value of the roles claim stands for; others count for nothing. Empty: our own names."""
    refresh_seconds: Annotated[float, Field(gt=0, le=86_400)] = 300.0
    """How often the keys are fetched from `jwks_url`."""
    min_refresh_seconds: Annotated[float, Field(gt=0)] = 10.0
    """They are fetched sooner for a token that names an unknown key, or after a failure, but with this pause."""

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if (self.jwks_url is None) == (self.jwks_file is None):
            raise ValueError("set one of jwks_url and jwks_file")
        if self.min_refresh_seconds > self.refresh_seconds:
            raise ValueError("min_refresh_seconds is longer than refresh_seconds")
        return self


_IssuerName = Annotated[str, Field(pattern=r"^[a-z0-9_-]{1,64}$")]


class IdentitySettings(Section):
    """Who may call. Something of this, a database, or an authority of callers' certificates must be set.

    That authority alone needs a policy file beside it, which says whose certificates stand for whom.
    """

    key_file: ReadableFile | None = None
    """API keys as hashes, TOML, read again when it changes; `headrace keys new` prints an entry."""
    development_key_file: ReadableFile | None = None
    """One key in clear text, any text, with the admin role: for a laptop."""
    token_issuers: dict[_IssuerName, TokenIssuerSettings] = Field(default_factory=dict)
    """Identity providers, by name."""
    order: tuple[Provider, ...] = get_args(Provider)
    """Who is asked first; the first one that knows a credential counts. Those that are set must be named, each once."""

    @model_validator(mode="before")
    @classmethod
    def _renamed(cls, stated: object) -> object:
        if isinstance(stated, dict) and "token_issuer" in stated:
            raise ValueError(
                "TOKEN_ISSUER__… is TOKEN_ISSUERS__<NAME>__… now, with a name of your choice: there may be several"
            )
        return stated

    @model_validator(mode="after")
    def _unambiguous(self) -> Self:
        issuers = [each.issuer for each in self.token_issuers.values()]
        if len(set(issuers)) != len(issuers):
            raise ValueError("two of token_issuers have the same issuer")
        if len(set(self.order)) != len(self.order):
            raise ValueError("order names a provider twice")
        return self


class DeadlineSettings(Section):
    """How long callers wait."""

    default_seconds: Annotated[float, Field(gt=0)] = 60.0
    """For a call that brings no deadline."""
    maximum_seconds: Annotated[float, Field(gt=0)] = 600.0
    """A longer one is cut to this."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.default_seconds > self.maximum_seconds:
            raise ValueError("default_seconds is longer than maximum_seconds")
        return self


class DrainSettings(Section):
    """How the gateway leaves; notice + grace must fit inside the pod's termination grace."""

    notice_seconds: Annotated[float, Field(ge=0)] = 5.0
    """Between NOT_SERVING and the refusal of new calls: time for load balancers to look elsewhere."""
    grace_seconds: Annotated[float, Field(ge=0)] = 20.0
    """For calls that are under way."""


class BoundSettings(Section):
    """What the gateway holds at most; beyond it a call is refused at once."""

    calls: Annotated[int, Field(ge=1)] = 10_000
    """Calls that wait for their answer."""
    request_bytes: Annotated[int, Field(ge=MEBIBYTE)] = 1024 * MEBIBYTE
    """Request bytes of all calls that wait."""


def _redis(url: str) -> str:
    parts = urlsplit(url)
    database = parts.path.removeprefix("/")
    port = parts.port  # raises where it is none
    plain = parts.scheme in {"redis", "rediss"} and parts.hostname and (not database or database.isdecimal())
    if not (plain or (parts.scheme == "unix" and database and port is None)) or parts.query or parts.fragment:
        raise ValueError("must be redis://HOST:PORT/DATABASE, rediss://… (TLS) or unix:///PATH, and no more")
    if parts.password is not None:
        raise ValueError("must hold no password: put it into password_file")
    return url


class SharedLimitSettings(Section):
    """Limits that all gateways count together, through Redis or Valkey."""

    redis_url: Annotated[str, AfterValidator(_redis)] | None = None
    """`redis://HOST:PORT/DATABASE`, `rediss://…` with TLS, or `unix:///PATH`; a pool's limits are its own there.

    Gateways of one Redis should be of one log: how many there are is counted there. Unset: each counts by itself."""
    password_file: ReadableFile | None = None
    """Its password."""
    when_away: Literal["local_share", "deny", "allow"] = "local_share"
    """While it is away: each gateway allows its share of every limit, or refuses what is limited, or limits nothing."""

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if self.password_file is not None and self.redis_url is None:
            raise ValueError("password_file needs redis_url beside it")
        return self


class GatewaySection(Section):
    """Everything that is the gateway's alone."""

    id: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,128}$")] | None = None
    """This gateway's name, unique among gateways; the host's name where unset."""
    grpc: GrpcSettings = GrpcSettings()
    reply: ReplySettings
    admin: AdminSettings = AdminSettings()
    identity: IdentitySettings = IdentitySettings()
    policy_file: ReadableFile | None = None
    """What each tenant may call and use, YAML, read again when it changes.

    Unset: who is known may call everything; with a database, only its tenants may call, and what is granted there."""
    shared_limits: SharedLimitSettings = SharedLimitSettings()
    deadlines: DeadlineSettings = DeadlineSettings()
    drain: DrainSettings = DrainSettings()
    bounds: BoundSettings = BoundSettings()
    attempts: Annotated[int, Field(ge=1, le=100)] = 3
    """How often a call is published at most: again, where the router or Triton that had it died before it answered.

    1: never again. More: a request that kills its Triton kills so many."""
    owner_wait_seconds: Annotated[float, Field(ge=0)] = 30.0
    """How long such a call waits for a router that is alive, within its deadline, before it ends with ROUTER_LOST or
    TRITON_LOST: what a pod takes to start, where one may be the only one."""
    delivery_seconds: Annotated[float, Field(gt=0)] = 10.0
    """How long the broker may take to accept a call before the caller hears LOG_UNAVAILABLE.

    Large calls may wait their turn before that, while 64 MiB of others are on their way to the broker.
    """
    rest_json_bytes: Annotated[int, Field(ge=1024, le=1 << 30)] = 4 * MEBIBYTE
    """JSON of one REST call at most; binary tensors do not count. Reading 4 MiB takes some 0.2 s of the CPU."""
    pool_may_sleep: bool = False
    """True where an autoscaler wakes a pool without routers: calls are then queued instead of refused."""


class GatewaySettings(ProcessSettings):
    """The gateway's settings, whole."""

    section: ClassVar[str] = "gateway"
    kafka: KafkaSettings = KafkaSettings()
    topics: TopicSettings = TopicSettings()
    pool: PoolSettings = PoolSettings()
    database: DatabaseSettings = DatabaseSettings()
    reply_trust: ReplyTrustSettings
    traces: TraceSettings = TraceSettings()
    gateway: GatewaySection

    @model_validator(mode="after")
    def _callable(self) -> Self:
        identity = self.gateway.identity
        settings: dict[Provider, object] = {
            "key_file": identity.key_file,
            "database": self.database.url,
            "development_key": identity.development_key_file,
            "tokens": identity.token_issuers,
            "certificate": self.gateway.grpc.tls_client_ca_file,
        }
        asked = [provider for provider, setting in settings.items() if setting]
        unnamed = [provider for provider in asked if provider not in identity.order]
        if unnamed:
            raise ValueError(f"HEADRACE_GATEWAY__IDENTITY__ORDER leaves out what is set: {', '.join(unnamed)}")
        if not asked:
            raise ValueError(
                "set HEADRACE_GATEWAY__IDENTITY__KEY_FILE (or HEADRACE_DATABASE__URL, or another of"
                " HEADRACE_GATEWAY__IDENTITY__…): without them nobody can call"
            )
        if asked == ["certificate"] and self.gateway.policy_file is None:
            raise ValueError(
                "set HEADRACE_GATEWAY__POLICY_FILE (or HEADRACE_DATABASE__URL): tls_client_ca_file is all that is set,"
                " and without tenants that list certificates nobody can call"
            )
        return self
