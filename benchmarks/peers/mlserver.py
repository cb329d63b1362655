"""MLServer with an identity model: the nearest neighbour, a Python gRPC server that parses and serves by itself.

It runs in a virtual environment of its own, since what it depends on contradicts what Headrace depends on.
"""

import json
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from benchmarks.children import child, free_port, listening
from benchmarks.peers import Peer

_HERE = Path(__file__).parent.parent
_REQUIREMENTS = _HERE / "requirements.txt"
_LEAN_RUNTIME = _HERE / "mlserver_identity.py"
_PLAIN_RUNTIME = _HERE / "mlserver_identity_plain.py"
_MESSAGE_BYTES = 64 * 1024 * 1024


def install(environment: Path) -> Path:
    """Make MLServer's virtual environment from the hashed list, once, and again when the list has changed."""
    python = environment / "bin" / "python"
    done = environment / "requirements.txt"
    if not done.exists() or done.read_bytes() != _REQUIREMENTS.read_bytes():
        shutil.rmtree(environment, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", environment], check=True, timeout=120)  # noqa: S603  ours alone
        pip = [str(python), "-m", "pip", "install", "--quiet", "--require-hashes", "--requirement", str(_REQUIREMENTS)]
        subprocess.run(pip, check=True, timeout=600)  # noqa: S603  ours alone
        shutil.copy(_REQUIREMENTS, done)
    return python


_LEAN: dict[str, object] = {
    "debug": False,  # no line per call in the log
    "metrics_endpoint": None,  # no interceptor that counts
}


def _settings(*, grpc_port: int, metrics_port: int) -> dict[str, object]:
    return {
        "parallel_workers": 0,  # the model runs in the server's process: no copies between processes
        "host": "127.0.0.1",
        "http_port": free_port(),
        "grpc_port": grpc_port,
        "metrics_port": metrics_port,
        "grpc_max_message_length": _MESSAGE_BYTES,
    }


@asynccontextmanager
async def start(build: Path, *, lean: bool) -> AsyncIterator[Peer]:
    """Run MLServer until the body is left: one process with one event loop.

    `lean` turns everything off that it can do without, and its model skips the validation of its answer. Otherwise it
    runs as it ships, with metrics and its log, and the model is written as its documentation writes one.
    """
    python = install(build / "mlserver")
    port = free_port()
    name = "mlserver-lean" if lean else "mlserver"
    models, log = build / f"{name}_models", build / "logs" / f"{name}.log"
    model = models / "copy"
    model.mkdir(parents=True, exist_ok=True)
    settings = _settings(grpc_port=port, metrics_port=free_port()) | (_LEAN if lean else {})
    (models / "settings.json").write_text(json.dumps(settings))
    (model / "model-settings.json").write_text(json.dumps({"name": "copy", "implementation": "identity.Identity"}))
    shutil.copy(_LEAN_RUNTIME if lean else _PLAIN_RUNTIME, model / "identity.py")
    argv = [str(python.with_name("mlserver")), "start", str(models)]
    async with child(argv, log=log, cwd=models) as process:
        await listening(process, port, log=log, within_seconds=60)
        yield Peer(
            name="MLServer, lean" if lean else "MLServer",
            address=f"127.0.0.1:{port}",
            processes={"mlserver": process.pid},
            relay=("mlserver",),
            about=_versions(python),
        )


def _versions(python: Path) -> dict[str, str]:
    program = "import importlib.metadata as m; print(m.version('mlserver'), m.version('grpcio'), m.version('uvloop'))"
    asked = subprocess.run([python, "-c", program], check=True, capture_output=True, text=True, timeout=30)  # noqa: S603
    return dict(zip(("mlserver", "mlserver's grpcio", "mlserver's uvloop"), asked.stdout.split(), strict=True))
