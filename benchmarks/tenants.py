"""Policies and keys as a large installation has them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from headrace.local.keys import new_key

UNREACHED = 1_000_000
"""A limit that no benchmark reaches: it is counted, and refuses nobody."""
_BYTES = UNREACHED * 1_000_000


@dataclass(frozen=True, kw_only=True)
class Tenants:
    """What a gateway reads, and keys in clear text by tenant."""

    policy_file: Path
    key_file: Path
    keys: Mapping[str, str]

    @property
    def settings(self) -> dict[str, str]:
        """What has a gateway read it."""
        return {
            "GATEWAY__POLICY_FILE": str(self.policy_file),
            "GATEWAY__IDENTITY__KEY_FILE": str(self.key_file),
        }


_CALLS, _AT_A_TIME = f"calls_per_second: {UNREACHED}", f"concurrency: {UNREACHED}"


def many(folder: Path, *, tenants: int, keys: int, quotas: bool = False, everywhere: bool = False) -> Tenants:
    """Write a policy, and keys for all tenants in turn; the one key that is given is from the middle.

    Tenants are limited in every way (calls, bytes and requests' size, calls at a time), keys in their calls, models and
    gateway in calls at a time; `everywhere`: each of these, and a tenant at a model, in every way.
    """
    limits = every = f"{_CALLS}, bytes_per_second: {_BYTES}, {_AT_A_TIME}"
    by_model = f"\n      copy: {{{every}}}" if everywhere else ""
    key_limits, ceiling = (every, every) if everywhere else (_CALLS, _AT_A_TIME)
    quota = f"\n    quotas: {{calls_per_day: {_BYTES}, model_seconds_per_month: {UNREACHED}}}" if quotas else ""
    policy = ["tenants:"]
    policy += [
        f"""  tenant-{number}:
    models: [copy, "text_*"]
    limits: {{{limits}, request_bytes: 1000000}}
    each_key: {{{key_limits}}}
    by_model:
      "text_*": {{concurrency: 4}}{by_model}{quota}"""
        for number in range(tenants)
    ]
    policy += ["models:", f"  copy: {{{ceiling}}}", f"gateway: {{{ceiling}}}"]
    return _written(folder, policy, ((f"k{number}", f"tenant-{number % tenants}") for number in range(keys)), keys // 2)


def few(folder: Path, limits: Mapping[str, str]) -> Tenants:
    """Write a policy of tenants with these limits, and a key for each."""
    policy = ["tenants:"]
    for tenant, limit in limits.items():
        policy += [f"  {tenant}:", "    models: [copy]", f"    limits: {{{limit}}}"]
    return _written(folder, policy, ((tenant, tenant) for tenant in limits))


def _written(
    folder: Path, policy: Sequence[str], owners: Iterable[tuple[str, str]], only: int | None = None
) -> Tenants:
    folder.mkdir(parents=True, exist_ok=True)
    policy_file, key_file, keys = folder / "tenants.yaml", folder / "keys.toml", {}
    policy_file.write_text("\n".join([*policy, ""]))
    with key_file.open("w") as file:
        for number, (key_id, tenant) in enumerate(owners):
            made = new_key(tenant=tenant, key_id=key_id)
            file.write(made.entry)
            if only in (None, number):
                keys[tenant] = made.key
    return Tenants(policy_file=policy_file, key_file=key_file, keys=keys)
