"""What our processes make of what their pods are told: their settings' classes, loaded from the rendered environment.

Files that the environment names must be mounted, and exist here for the time of loading: certificates that fit, any
text for the rest.
"""

import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path, PurePosixPath

import trustme

from aggregator.settings import AggregatorSettings
from gateway.settings import GatewaySettings
from headrace.runtime.settings import PREFIX, ProcessSettings
from router.settings import RouterSettings
from tests.manifests.rendering import Json, Manifests, Pod

PROCESSES: Mapping[str, type[ProcessSettings]] = {
    "gateway": GatewaySettings,
    "router": RouterSettings,
    "aggregator": AggregatorSettings,
}

SECRETS: Mapping[str, frozenset[str]] = {
    "headrace-keys": frozenset({"keys.toml"}),
    "headrace-reply": frozenset({"secret"}),
    "headrace-database": frozenset({"password"}),
    "headrace-redis": frozenset({"password", "password.conf"}),
    "headrace-model-store": frozenset({"rclone.conf"}),
    "headrace-callers-ca": frozenset({"tls.crt", "tls.key"}),
}
"""Secrets that are an operator's to make, and their keys; docs/howto/deploy.md lists them."""

CERT_MANAGER = frozenset({"tls.crt", "tls.key", "ca.crt"})
STRIMZI_USER = frozenset({"ca.crt", "user.crt", "user.key", "user.p12", "user.password"})
STRIMZI_CA = frozenset({"ca.crt", "ca.p12", "ca.password"})
OURS = "/etc/headrace/"


def secret_keys(manifests: Manifests, name: str) -> frozenset[str] | None:
    """The keys that a Secret will have, whoever makes it; None for one that nobody makes."""
    if (found := manifests.find("Secret", name)) is not None:
        return frozenset({**found.get("data", {}), **found.get("stringData", {})})
    if any(each["spec"]["secretName"] == name for each in manifests.of("Certificate")):
        return CERT_MANAGER
    if manifests.find("KafkaUser", name) is not None:
        return STRIMZI_USER
    if any(name == f"{each['metadata']['name']}-cluster-ca-cert" for each in manifests.of("Kafka")):
        return STRIMZI_CA
    return SECRETS.get(name)


def process_of(container: Json) -> str | None:
    """Which of our processes a container runs."""
    said = " ".join([*container.get("command", ()), *container.get("args", ())])
    return next((name for name in PROCESSES if f"headrace {name}" in said), None)


def processes(manifests: Manifests) -> Iterator[tuple[Pod, Json, str]]:
    """Every container that runs a process of ours."""
    for pod in manifests.pods:
        for container in pod.spec["containers"]:
            name = process_of(container)
            if name is not None:
                yield pod, container, name


def load(process: str, environment: Mapping[str, str]) -> ProcessSettings:
    """The process's settings. Raises SettingsError as the process would."""
    return _load(process, frozenset(environment.items()))


@cache
def _load(process: str, environment: frozenset[tuple[str, str]]) -> ProcessSettings:
    with tempfile.TemporaryDirectory() as folder, _environment(_with_files(dict(environment), Path(folder))):
        return PROCESSES[process].load()


def settings_of(manifests: Manifests, pod: Pod) -> ProcessSettings:
    """The settings of a pod's own process."""
    container, process = next((c, process) for p, c, process in processes(manifests) if p is pod)
    return load(process, manifests.environment(container))


def unmounted(manifests: Manifests, pod: Pod, container: Json, path: str) -> str | None:
    """Why a file that a setting names will not be there; None where it will."""
    wanted = PurePosixPath(path)
    for mount in container.get("volumeMounts", ()):
        folder = PurePosixPath(mount["mountPath"])
        if not wanted.is_relative_to(folder):
            continue
        volume = next(each for each in pod.spec["volumes"] if each["name"] == mount["name"])
        there = _files(manifests, volume)
        if there is not None and str(wanted.relative_to(folder)) not in there:
            return f"{path}: not in {volume['name']}, which has {', '.join(sorted(there))}"
        return None
    return f"{path}: nothing is mounted there"


def _files(manifests: Manifests, volume: Json) -> frozenset[str] | None:
    """The files of a volume; None where they can't be told from here."""
    if (source := volume.get("secret")) is not None:
        keys = secret_keys(manifests, source["secretName"])
    elif (source := volume.get("configMap")) is not None:
        found = manifests.find("ConfigMap", source["name"])
        keys = None if found is None else frozenset({**found.get("data", {}), **found.get("binaryData", {})})
    else:
        return None
    if keys is not None and "items" in source:
        return frozenset(item["path"] for item in source["items"] if item["key"] in keys)
    return keys


def _with_files(environment: Mapping[str, str], folder: Path) -> dict[str, str]:
    authority, certificate, key = _certificates()
    found = {}
    for name, value in environment.items():
        if not name.startswith(PREFIX):
            continue
        found[name] = value
        if value.startswith(OURS):
            path = folder / value.removeprefix(OURS)
            path.parent.mkdir(parents=True, exist_ok=True)
            contents = {"ca.crt": authority, ".crt": certificate, ".key": key}
            path.write_bytes(contents.get(path.name, contents.get(path.suffix, b"a secret")))
            found[name] = str(path)
    return found


@cache
def _certificates() -> tuple[bytes, bytes, bytes]:
    authority = trustme.CA()
    issued = authority.issue_cert("headrace.example")
    chain = b"".join(each.bytes() for each in issued.cert_chain_pems)
    return authority.cert_pem.bytes(), chain, issued.private_key_pem.bytes()


@contextmanager
def _environment(ours: Mapping[str, str]) -> Iterator[None]:
    before = {name: value for name, value in os.environ.items() if name.startswith(PREFIX)}
    for name in before:
        del os.environ[name]
    os.environ.update(ours)
    try:
        yield
    finally:
        for name in ours:
            del os.environ[name]
        os.environ.update(before)
