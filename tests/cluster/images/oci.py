"""Images as OCI archives, which container runtimes import without a registry.

The format: https://github.com/opencontainers/image-spec, version 1.1.
"""

import hashlib
import io
import json
import tarfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar"
NAME = "io.containerd.image.name"


@dataclass(frozen=True)
class Image:
    """A name, layers as tar files from the lowest to the highest, and what runs."""

    name: str
    """With its tag, and whole: `docker.io/library/...` where no registry is named."""
    layers: tuple[Path, ...]
    entrypoint: tuple[str, ...] = ()
    command: tuple[str, ...] = ()
    user: str = ""
    env: Mapping[str, str] = field(default_factory=dict)


class Archive:
    """Writes images into one file; a layer that several have is in it once."""

    def __init__(self, path: Path) -> None:
        self._tar = tarfile.open(path, "w")  # noqa: SIM115  closed by write_archive
        self._written: dict[str, int] = {}

    def close(self, manifests: Iterable[dict[str, Any]]) -> None:
        """Write what points to the rest."""
        index = {"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": [*manifests]}
        self._add("index.json", json.dumps(index).encode())
        self._add("oci-layout", b'{"imageLayoutVersion": "1.0.0"}')
        self._tar.close()

    def add(self, image: Image) -> dict[str, Any]:
        """Write an image's parts; returns its line in the index."""
        layers = [self._layer(path) for path in image.layers]
        config = {
            "architecture": "amd64",
            "os": "linux",
            "config": {
                "User": image.user,
                "Env": [f"{name}={value}" for name, value in image.env.items()],
                "Entrypoint": [*image.entrypoint],
                "Cmd": [*image.command],
            },
            "rootfs": {"type": "layers", "diff_ids": [layer["digest"] for layer in layers]},
        }
        manifest = {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": self._document(config, CONFIG),
            "layers": layers,
        }
        return self._document(manifest, MANIFEST) | {"annotations": {NAME: image.name}}

    def _layer(self, path: Path) -> dict[str, Any]:
        with path.open("rb") as content:
            digest = f"sha256:{hashlib.file_digest(content, 'sha256').hexdigest()}"
        if digest not in self._written:
            self._tar.add(path, _blob(digest))
            self._written[digest] = path.stat().st_size
        # Not compressed, so its digest is also that of what is in it.
        return {"mediaType": LAYER, "digest": digest, "size": self._written[digest]}

    def _document(self, document: object, kind: str) -> dict[str, Any]:
        content = json.dumps(document).encode()
        digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
        if digest not in self._written:
            self._add(_blob(digest), content)
            self._written[digest] = len(content)
        return {"mediaType": kind, "digest": digest, "size": len(content)}

    def _add(self, name: str, content: bytes) -> None:
        entry = tarfile.TarInfo(name)
        entry.size = len(content)
        self._tar.addfile(entry, io.BytesIO(content))


def write_archive(path: Path, images: Iterable[Image]) -> None:
    """Write one archive with all images, whole or not at all."""
    scratch = path.with_suffix(".part")
    archive = Archive(scratch)
    archive.close([archive.add(image) for image in images])
    scratch.replace(path)


def _blob(digest: str) -> str:
    return f"blobs/sha256/{digest.removeprefix('sha256:')}"
