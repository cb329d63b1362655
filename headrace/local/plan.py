"""Which processes make a stack, on which ports, and with which settings: decided before anything is started."""

import hashlib
import os
import socket
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from headrace.local.database import PASSWORD_FILE
from headrace.local.options import EMBEDDED, UpOptions, UsageError, join_address
from headrace.local.ports import FreePorts, PortsError, holder, is_free
from headrace.local.probe import Probe, reachable_host
from headrace.local.program import Program
from headrace.local.state import Endpoints
from headrace.local.supervisor import Component
from headrace.local.tenants import POLICY_FILE
from headrace.runtime.lifecycle import NATIVE_ENVIRONMENT

LOOPBACK = "127.0.0.1"
GATEWAY_RANK, ENVOY_RANK, ROUTER_RANK, TRITON_RANK, AGGREGATOR_RANK, BROKER_RANK = range(6)
GRACE_SECONDS = 10
REPLY_SECRET = "HEADRACE_REPLY_TRUST__SECRET_FILE"  # noqa: S105  a setting's name
REDIS_URL = "HEADRACE_GATEWAY__SHARED_LIMITS__REDIS_URL"
REDIS_PASSWORD_FILE = "HEADRACE_GATEWAY__SHARED_LIMITS__PASSWORD_FILE"  # noqa: S105  a setting's name


@dataclass(frozen=True, kw_only=True)
class Secrets:
    """Files that hold what the processes must know and nobody else may."""

    key_file: Path
    reply_secret_file: Path
    tenant_keys_file: Path
    policy_file: Path


@dataclass(frozen=True, kw_only=True)
class GatewaySpec:
    """One gateway's ports."""

    name: str
    id: str
    """Its name on the log."""
    grpc_port: int
    admin_port: int
    reply_port: int


@dataclass(frozen=True, kw_only=True)
class TritonSpec:
    """The ports of one Triton that is started here."""

    name: str
    grpc_port: int
    http_port: int
    metrics_port: int


@dataclass(frozen=True, kw_only=True)
class RouterSpec:
    """One router: its port, and the Triton that it serves."""

    name: str
    id: str
    """Its name on the log."""
    admin_port: int
    triton: str


@dataclass(frozen=True, kw_only=True)
class AggregatorSpec:
    """What sums usage."""

    id: str
    """Its name on the log."""
    admin_port: int


@dataclass(frozen=True, kw_only=True)
class EnvoySpec:
    """The ports of the Envoy that answers REST calls."""

    http_port: int
    admin_port: int


@dataclass(frozen=True, kw_only=True)
class BrokerSpec:
    """The ports of the broker that is started here."""

    port: int
    controller_port: int


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The whole stack."""

    host: str
    gateways: tuple[GatewaySpec, ...]
    routers: tuple[RouterSpec, ...]
    tritons: tuple[TritonSpec, ...]
    broker: BrokerSpec | None
    kafka: str
    redis: str | None
    database: str
    """Its URL."""
    aggregator: AggregatorSpec
    envoy: EnvoySpec

    @property
    def endpoints(self) -> Endpoints:
        """Where everything will be reached from this machine."""
        host = reachable_host(self.host)
        started = [
            {
                "grpc": join_address(LOOPBACK, triton.grpc_port),
                "http": join_address(LOOPBACK, triton.http_port),
                "metrics": join_address(LOOPBACK, triton.metrics_port),
            }
            for triton in self.tritons
        ]
        return Endpoints(
            grpc=[join_address(host, gateway.grpc_port) for gateway in self.gateways],
            http=join_address(host, self.envoy.http_port),
            envoy_admin=join_address(LOOPBACK, self.envoy.admin_port),
            admin=[join_address(host, gateway.admin_port) for gateway in self.gateways],
            reply=[join_address(LOOPBACK, gateway.reply_port) for gateway in self.gateways],
            kafka=self.kafka,
            triton=started or [{"grpc": router.triton} for router in self.routers],
            router_admin=[join_address(LOOPBACK, router.admin_port) for router in self.routers],
        )


def make_plan(options: UpOptions) -> Plan:
    """Give every process its ports. Raises UsageError where a port that the user named is busy."""
    for option, port in options.ports.items():
        _require_free(options.host, port, option)
    named = frozenset({options.grpc_port, options.http_port, options.admin_port})
    public, private = FreePorts(options.host, taken=named), FreePorts(LOOPBACK, taken=named)
    try:
        tritons = () if options.triton else tuple(_triton(index, private) for index in range(options.replicas))
        attached = options.triton or tuple(join_address(LOOPBACK, triton.grpc_port) for triton in tritons)
        broker, apart = None, _apart(options.state_dir)
        if options.broker == EMBEDDED:
            apart = ""
            broker = BrokerSpec(port=private.take(), controller_port=private.take())
        return Plan(
            host=options.host,
            gateways=tuple(_gateway(index, options, apart, public, private) for index in range(options.gateways)),
            routers=tuple(
                RouterSpec(
                    name=f"router-{index}", id=f"router-{index}{apart}", admin_port=private.take(), triton=triton
                )
                for index, triton in enumerate(attached)
            ),
            tritons=tritons,
            broker=broker,
            kafka=options.broker if broker is None else join_address(LOOPBACK, broker.port),
            redis=options.redis,
            database=options.database_url,
            aggregator=AggregatorSpec(id=f"aggregator{apart}", admin_port=private.take()),
            envoy=EnvoySpec(http_port=options.http_port, admin_port=private.take()),
        )
    except PortsError as exc:
        raise UsageError(str(exc)) from None


def _apart(state_dir: Path) -> str:
    """What tells this stack's ids from those of any other on the same broker, today and after the next start."""
    whose = f"{socket.gethostname()}\n{state_dir.resolve()}"
    return f"-{hashlib.sha256(whose.encode()).hexdigest()[:10]}"


def _require_free(host: str, port: int, option: str) -> None:
    try:
        if is_free(host, port):
            return
    except PortsError as exc:
        raise UsageError(f"{exc} (--host, {option})") from None
    who = holder(port)
    raise UsageError(
        f"port {port} is in use{f' by {who}' if who else ''}: stop that, or choose another port with {option}"
    )


def _triton(index: int, ports: FreePorts) -> TritonSpec:
    return TritonSpec(name=f"triton-{index}", grpc_port=ports.take(), http_port=ports.take(), metrics_port=ports.take())


def _gateway(index: int, options: UpOptions, apart: str, public: FreePorts, private: FreePorts) -> GatewaySpec:
    first = index == 0
    return GatewaySpec(
        name=f"gateway-{index}",
        id=f"gateway-{index}{apart}",
        grpc_port=options.grpc_port if first else public.take(),
        admin_port=options.admin_port if first else public.take(),
        reply_port=private.take(),
    )


def gateway_component(plan: Plan, spec: GatewaySpec, secrets: Secrets, *, cwd: Path) -> Component:
    """A gateway as a child process."""
    settings = {
        "GATEWAY__GRPC__HOST": plan.host,
        "GATEWAY__GRPC__PORT": str(spec.grpc_port),
        "GATEWAY__ADMIN__HOST": plan.host,
        "GATEWAY__ADMIN__PORT": str(spec.admin_port),
        "GATEWAY__REPLY__HOST": LOOPBACK,
        "GATEWAY__REPLY__PORT": str(spec.reply_port),
        "GATEWAY__IDENTITY__DEVELOPMENT_KEY_FILE": str(secrets.key_file),
        "DATABASE__URL": plan.database,
    }
    # Nothing balances load in front of a laptop's gateway: no time needs to pass for it to look elsewhere.
    tunable = {
        "GATEWAY__DRAIN__NOTICE_SECONDS": "0",
        "GATEWAY__DRAIN__GRACE_SECONDS": str(GRACE_SECONDS),
        "GATEWAY__IDENTITY__KEY_FILE": str(secrets.tenant_keys_file),
        "GATEWAY__POLICY_FILE": str(secrets.policy_file),
    }
    if plan.redis is not None:
        settings["GATEWAY__SHARED_LIMITS__REDIS_URL"] = f"redis://{plan.redis}"
    # A name of the user's own can be that of one process only.
    (tunable if len(plan.gateways) == 1 else settings)["GATEWAY__ID"] = spec.id
    settings |= _shared(plan, secrets)
    program = _process("gateway", spec.name, settings, tunable, cwd, without=_passwords_for_nobody(plan))
    health = Probe(kind="http", host=reachable_host(plan.host), port=spec.admin_port, path="/readyz")
    return Component(
        name=spec.name,
        make_program=lambda: program,
        health=health,
        stop_rank=GATEWAY_RANK,
        stop_seconds=GRACE_SECONDS + 5,
    )


def aggregator_component(plan: Plan, spec: AggregatorSpec, *, cwd: Path) -> Component:
    """What sums usage, as a child process."""
    settings = {
        "AGGREGATOR__ADMIN__HOST": LOOPBACK,
        "AGGREGATOR__ADMIN__PORT": str(spec.admin_port),
        "DATABASE__URL": plan.database,
        "KAFKA__BOOTSTRAP_SERVERS": plan.kafka,
    }
    tunable = {"AGGREGATOR__ID": spec.id}
    program = _process("aggregator", "aggregator", settings, tunable, cwd, without=_passwords_for_nobody(plan))
    health = Probe(kind="http", host=LOOPBACK, port=spec.admin_port, path="/readyz")
    return Component(
        name="aggregator",
        make_program=lambda: program,
        health=health,
        stop_rank=AGGREGATOR_RANK,
        stop_seconds=GRACE_SECONDS + 5,
    )


def router_component(plan: Plan, spec: RouterSpec, secrets: Secrets, *, cwd: Path) -> Component:
    """A router as a child process."""
    settings = {
        "ROUTER__ADMIN__HOST": LOOPBACK,
        "ROUTER__ADMIN__PORT": str(spec.admin_port),
        "ROUTER__TRITON__ADDRESS": spec.triton,
    }
    tunable = {
        "ROUTER__DRAIN_GRACE_SECONDS": str(GRACE_SECONDS),
        # A Triton that is attached and empty, or whose models are all broken, is mended while the stack runs.
        "ROUTER__READY_WITHOUT_MODELS": "true",
    }
    if plan.broker is not None:
        tunable["KAFKA__GROUP_PROTOCOL"] = "consumer"
    (tunable if len(plan.routers) == 1 else settings)["ROUTER__ID"] = spec.id
    program = _process("router", spec.name, settings | _shared(plan, secrets), tunable, cwd)
    health = Probe(kind="http", host=LOOPBACK, port=spec.admin_port, path="/readyz")
    return Component(
        name=spec.name,
        make_program=lambda: program,
        health=health,
        stop_rank=ROUTER_RANK,
        stop_seconds=GRACE_SECONDS + 5,
    )


def envoy_component(spec: EnvoySpec, make_program: Callable[[], Program]) -> Component:
    """Envoy as a child process. It stops after the gateways, for what they still answer to come through."""
    health = Probe(kind="http", host=LOOPBACK, port=spec.admin_port, path="/ready")
    return Component(name="envoy", make_program=make_program, health=health, stop_rank=ENVOY_RANK, stop_seconds=5)


def triton_component(spec: TritonSpec, make_program: Callable[[], Program]) -> Component:
    """A Triton as a child process."""
    health = Probe(kind="http", host=LOOPBACK, port=spec.http_port, path="/v2/health/ready")
    return Component(name=spec.name, make_program=make_program, health=health, stop_rank=TRITON_RANK, stop_seconds=15)


def broker_component(spec: BrokerSpec, make_program: Callable[[], Program]) -> Component:
    """The broker as a child process."""
    health = Probe(kind="kafka", host=LOOPBACK, port=spec.port)
    return Component(name="broker", make_program=make_program, health=health, stop_rank=BROKER_RANK, stop_seconds=15)


def _shared(plan: Plan, secrets: Secrets) -> dict[str, str]:
    return {
        "KAFKA__BOOTSTRAP_SERVERS": plan.kafka,
        # Stacks that are to serve one pool together need one secret.
        "REPLY_TRUST__SECRET_FILE": os.environ.get(REPLY_SECRET, str(secrets.reply_secret_file)),
    }


def policy_file(secrets: Secrets, *, cwd: Path) -> Path:
    """The policy that gateways take: the user's own, or that of the state folder."""
    own = {variable.upper(): value for variable, value in os.environ.items()}.get(POLICY_FILE)
    return cwd / own if own else secrets.policy_file


def _passwords_for_nobody(plan: Plan) -> frozenset[str]:
    """Files of passwords that the environment names, perhaps for other commands, and nothing here is opened with.

    A process refuses to start with a password that it has no use for.
    """
    unused = set()
    if not plan.database.startswith("postgresql"):
        unused.add(PASSWORD_FILE)
    if plan.redis is None and REDIS_URL not in {variable.upper() for variable in os.environ}:
        unused.add(REDIS_PASSWORD_FILE)
    return frozenset(unused)


def _process(
    module: str,
    name: str,
    ours: Mapping[str, str],
    tunable: Mapping[str, str],
    cwd: Path,
    *,
    without: frozenset[str] = frozenset(),
) -> Program:
    chosen = {variable.upper() for variable in os.environ}
    tunable = {"LOG__FORMAT": "text"} | dict(tunable)
    env = {f"HEADRACE_{setting}": value for setting, value in ours.items()}
    # What the user's environment says about these wins; the rest would break the stack.
    env |= {f"HEADRACE_{s}": value for s, value in tunable.items() if f"HEADRACE_{s}" not in chosen}
    env |= {variable: value for variable, value in NATIVE_ENVIRONMENT.items() if variable not in os.environ}
    # With -P a file in the state folder, which may be any folder of the user's, is never taken for the process.
    return Program(name=name, argv=(sys.executable, "-P", "-m", module), env=env, without=without, cwd=cwd)
