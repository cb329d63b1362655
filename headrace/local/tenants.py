"""The sample of tenants that `headrace up` starts with: theirs to edit, and made once."""

from dataclasses import dataclass
from pathlib import Path

from headrace.local import state
from headrace.local.keys import new_key

POLICY = "tenants.yaml"
POLICY_FILE = "HEADRACE_GATEWAY__POLICY_FILE"
"""The setting that names another."""
KEYS = "keys.toml"
SAMPLE_KEY = "sample-key"
SAMPLE_TENANT = "sample"

_POLICY = """\
# What each tenant may call and use. Read again whenever it changes; a mistake leaves the policy before it in force, and
# `headrace policy check FILE` tells it. Keys are in keys.toml: `headrace keys new --tenant NAME >>keys.toml`.
tenants:
  # Whose key `headrace up` prints.
  development:
    models: ["*"]
    allow: [infer, metadata, admin]

  # Whose key is in the file sample-key: to see a limit, and what is hidden.
  sample:
    models: [simple, "text_*"]
    limits:
      calls_per_second: 2
      burst: 5
      concurrency: 2
"""


@dataclass(frozen=True, kw_only=True)
class Tenants:
    """Where the sample is."""

    policy_file: Path
    keys_file: Path
    sample_key: str


def kept_tenants(state_dir: Path) -> Tenants:
    """The tenants of a stack; made on first use, and the user's from then on."""
    policy, keys, sample = state_dir / POLICY, state_dir / KEYS, state_dir / SAMPLE_KEY
    if not policy.exists():
        state.write_private(policy, _POLICY)
    if not keys.exists():
        made = new_key(tenant=SAMPLE_TENANT, key_id="sample")
        state.write_private(sample, made.key)
        state.write_private(keys, made.entry)
    known = sample.read_text(encoding="ascii").strip() if sample.exists() else ""
    return Tenants(policy_file=policy, keys_file=keys, sample_key=known)
