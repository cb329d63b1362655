"""What holds for the repository as a whole: pinned packages, declared imports, fences that import-linter can't draw."""

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from importlib.metadata import packages_distributions
from itertools import chain
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PACKAGES = ("gateway", "router", "aggregator", "headrace")
LISTS = sorted((ROOT / "requirements").glob("*.txt"))
PEERS = ROOT / "benchmarks" / "requirements.txt"  # in an environment of its own: need not agree with the others
STUBS = "headrace/bus/v1"

TRITON_MESSAGES = {"tritonclient.grpc.service_pb2", "tritonclient.grpc.model_config_pb2"}
TRITON_CLIENTS = {"router/triton.py", "headrace/local/client.py"}


@pytest.mark.parametrize("path", [*LISTS, PEERS], ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_pinned_list_names_no_index_and_no_address(path: Path) -> None:
    """Where packages come from is the user's own setting."""
    lines = [line for line in path.read_text().splitlines() if not line.lstrip().startswith(("#", "--hash="))]

    assert [line for line in lines if line.startswith("-") or "://" in line] == []


@pytest.mark.parametrize("path", [*LISTS, PEERS], ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_pinned_list_gives_each_package_one_version_and_its_hashes(path: Path) -> None:
    entries = pinned(path)

    assert entries
    for requirement, hashes in entries:
        assert re.fullmatch(r"==[\w.]+", str(requirement.specifier)), requirement
        assert hashes, requirement


def test_pinned_lists_agree() -> None:
    """What is installed must not depend on which list was installed first."""
    versions: dict[tuple[str, str], set[str]] = {}
    for requirement, _ in chain.from_iterable(pinned(path) for path in LISTS):
        key = (canonicalize_name(requirement.name), str(requirement.marker))
        versions.setdefault(key, set()).add(str(requirement.specifier))

    assert {key: found for key, found in versions.items() if len(found) > 1} == {}


def test_all_of_grpc_is_pinned_to_one_minor_version() -> None:
    grpc = {
        requirement.name: str(requirement.specifier).removeprefix("==").rsplit(".", 1)[0]
        for requirement, _ in pinned(ROOT / "requirements" / "dev.txt")
        if requirement.name.startswith("grpcio")
    }

    assert grpc.keys() >= {"grpcio", "grpcio-health-checking", "grpcio-reflection", "grpcio-tools"}
    assert len(set(grpc.values())) == 1, grpc


def test_every_folder_with_modules_is_a_package() -> None:
    """Without its `__init__.py` a folder is left out of the wheel and out of import-linter's sight."""
    folders = {path.parent for path in modules()}

    assert [folder for folder in folders if not (folder / "__init__.py").exists()] == []


def test_what_is_imported_is_declared() -> None:
    """A transitive dependency may leave at any upgrade of the one that brings it."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    always = names(project["dependencies"])
    local = always | names(project["optional-dependencies"]["local"])
    owners = packages_distributions()

    undeclared = {
        f"{path.relative_to(ROOT)}: {module}"
        for path in modules()
        for module in imports(path)
        if (top := module.split(".")[0]) not in sys.stdlib_module_names and top not in PACKAGES
        if not {canonicalize_name(owner) for owner in owners.get(top, [])}
        & (local if path.is_relative_to(ROOT / "headrace" / "local") else always)
    }

    assert undeclared == set()


def test_tritons_client_is_used_in_its_two_places_only() -> None:
    """Its message classes are everybody's; its channels, calls and errors are not."""
    users = {
        path.relative_to(ROOT).as_posix()
        for path in modules()
        for module in imports(path)
        if module.split(".")[0] == "tritonclient"
        and not any(module == messages or module.startswith(f"{messages}.") for messages in TRITON_MESSAGES)
    }

    assert users <= TRITON_CLIENTS


def test_stubs_are_generated_for_our_own_protos_only() -> None:
    """A second copy of the OIP's descriptors in one process contradicts tritonclient's."""
    stubs = {path.relative_to(ROOT).as_posix() for package in PACKAGES for path in (ROOT / package).rglob("*_pb2*.py*")}
    protos = {
        path.relative_to(ROOT / "protos").with_suffix("").as_posix()
        for path in (ROOT / "protos" / "headrace").rglob("*.proto")
    }

    expected = {f"{proto}_pb2{suffix}" for proto in protos for suffix in (".py", ".pyi")}
    assert {stub for stub in stubs if "__pycache__" not in stub} == expected | {f"{STUBS}/reply_pb2_grpc.py"}


def pinned(path: Path) -> list[tuple[Requirement, list[str]]]:
    """The entries of a list, each with its hashes."""
    text = re.sub(r"\\\n", " ", path.read_text())
    lines = [line for line in text.splitlines() if line and not line.lstrip().startswith("#")]
    return [(Requirement(line.split("--hash")[0]), re.findall(r"--hash=sha256:[0-9a-f]{64}", line)) for line in lines]


def names(requirements: list[str]) -> set[str]:
    return {canonicalize_name(Requirement(requirement).name) for requirement in requirements}


@cache
def modules() -> list[Path]:
    """Every module of ours that ships, stubs left out."""
    paths = chain.from_iterable((ROOT / package).rglob("*.py") for package in PACKAGES)
    return sorted(path for path in paths if "_pb2" not in path.name)


@cache
def imports(path: Path) -> list[str]:
    """What a module imports from outside its package, at any depth: `a.b.c` for `from a.b import c` too."""
    return list(_imports(ast.parse(path.read_text())))


def _imports(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
