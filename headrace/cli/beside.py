"""The policy file beside the database: of a tenant that is in both, the file's word counts."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from headrace.cli.common import USAGE, fail
from headrace.cli.stores import meant

if TYPE_CHECKING:  # slow to import
    from gateway.policy.model import Policy, Tenant
    from headrace.store.tenants import StoredTenant


@dataclass(frozen=True, kw_only=True)
class Beside:
    """What the file says."""

    file: Path | None
    """None where it is not known from here which one it is."""
    policy: "Policy"
    """Without anything where nothing could be read."""
    trouble: str
    """Why nothing could be read, in one line; empty where it was, or where there is no file to read."""

    @property
    def name(self) -> str:
        """The file, in a sentence."""
        return "a policy file that is known here" if self.file is None else str(self.file)

    def tenant(self, name: str) -> "Tenant | None":
        """A tenant of the file."""
        return self.policy.tenants.get(name)


def beside(database: str | None, state_dir: Path | None) -> Beside:
    """Read the policy file that belongs to the database that is meant."""
    from gateway.policy.document import load_policy  # noqa: PLC0415  slow to import
    from gateway.policy.model import Policy  # noqa: PLC0415
    from headrace.runtime.settings import SettingsError  # noqa: PLC0415

    what = meant(database, state_dir)
    policy, trouble = Policy(), ""
    if what.policy_file is not None:
        try:
            policy = load_policy(what.policy_file)
        except FileNotFoundError:
            trouble = f"{what.policy_file} is gone" if what.runs else ""
        except OSError as exc:
            trouble = f"{what.policy_file}: {exc.strerror}"
        except SettingsError:
            trouble = f"{what.policy_file} has mistakes, which `headrace policy check` tells"
    if trouble:
        trouble += ": gateways that run go on with what they read of it last"
    return Beside(file=what.policy_file, policy=policy, trouble=trouble)


def warn(text: str) -> None:
    """Say it on stderr, in one line, and go on."""
    typer.echo(f"headrace: {text}", err=True)


def see_nothing_written(tenant: str, database: str | None, state_dir: Path | None) -> None:
    """End the command where the policy file has the tenant: what the database says of it would count for nothing."""
    read = beside(database, state_dir)
    if read.tenant(tenant) is not None:
        fail(
            f"tenant {tenant} is in {read.file}, whose word counts: change it there, or take it out there first",
            code=USAGE,
        )
    if read.trouble:
        warn(read.trouble)


def see_use(written: "Tenant | None", stored: "StoredTenant | None", roles: Sequence[str]) -> None:
    """Say why a key with these roles, of a tenant of the file or the database, can't do what it is made for."""
    from gateway.policy.document import PolicyError, read_tenant  # noqa: PLC0415  slow to import

    tenant = written
    if tenant is None and stored is not None:
        if stored.disabled:
            warn(f"tenant {stored.name} is disabled: the key is refused until `headrace tenants enable {stored.name}`")
        with suppress(PolicyError):  # written by hand
            tenant = read_tenant(stored.name, stored.grants)
    if tenant is not None and "admin" in roles and "admin" not in tenant.allow:
        options = " ".join(f"--allow {each}" for each in (*sorted(tenant.allow), "admin"))
        how = "`allow` in its policy file" if written else f"`headrace tenants change {tenant.name} {options}`"
        warn(f"tenant {tenant.name} is not granted `admin`, and so no key of it can administer: {how} grants it")
