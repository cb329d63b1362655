"""How the repository that Triton gets is put together."""

from pathlib import Path

import pytest

from headrace.local.models import ModelRepositoryError, bundled, materialise


def model(repository: Path, name: str, weights: str | None = None) -> Path:
    folder = repository / name
    (folder / "1").mkdir(parents=True)
    (folder / "config.pbtxt").write_text(f'name: "{name}"')
    (folder / "1" / "model.py").write_text("# code")
    if weights is not None:
        (folder / "weights.toml").write_text(weights)
    return folder


CARRIED = 'distribution = "pytest"\n[files]\n"1/weights.bin" = "pytest/py.typed"\n'


def test_weights_of_an_installed_package_lie_beside_the_code(tmp_path: Path) -> None:
    """A model finds its weights where its own code is."""
    model(tmp_path / "source", "heavy", CARRIED)
    model(tmp_path / "source", "light")

    materialise(tmp_path / "source", tmp_path / "target")

    files = {str(p.relative_to(tmp_path / "target")) for p in (tmp_path / "target").rglob("*") if p.is_file()}
    assert files == {
        "heavy/config.pbtxt",
        "heavy/1/model.py",
        "heavy/1/weights.bin",
        "light/config.pbtxt",
        "light/1/model.py",
    }
    assert (tmp_path / "target/heavy/1/weights.bin").resolve() == Path(pytest.__file__).with_name("py.typed").resolve()


def test_materialising_again_brings_the_newest_and_nothing_old(tmp_path: Path) -> None:
    """A model that left the source leaves the target."""
    old = model(tmp_path / "source", "old", CARRIED)
    model(tmp_path / "source", "kept", CARRIED)
    materialise(tmp_path / "source", tmp_path / "target")

    old.rename(tmp_path / "source" / "new")
    materialise(tmp_path / "source", tmp_path / "target")

    assert {path.name for path in (tmp_path / "target").iterdir()} == {"kept", "new"}
    assert {path.name for path in tmp_path.iterdir()} == {"source", "target"}


def test_a_users_own_repository_is_served_as_it_is(tmp_path: Path) -> None:
    """What is added to it later is seen; nothing in it is touched by what replaces it."""
    model(tmp_path / "mine", "first")
    materialise(tmp_path / "mine", tmp_path / "target")

    model(tmp_path / "mine", "second")

    assert (tmp_path / "target/second/1/model.py").is_file()
    materialise(bundled(), tmp_path / "target")
    assert {path.name for path in (tmp_path / "mine").iterdir()} == {"first", "second"}


def test_the_bundled_repository_is_complete(tmp_path: Path) -> None:
    """Every bundled model says what it is and where its weights come from, and finds them."""
    materialise(bundled(), tmp_path / "target")

    names = {path.name for path in (tmp_path / "target").iterdir()}
    assert names == {"file_type", "simple", "text_embedding", "voice_activity"}
    for name in names:
        files = {path.name for path in (tmp_path / "target" / name).iterdir()}
        assert {"config.pbtxt", "README.md", "1"} <= files
        assert "eights" in (tmp_path / "target" / name / "README.md").read_text()


@pytest.mark.parametrize(
    ("weights", "told"),
    [
        ('distribution = "no-such-thing"\n[files]\n"1/a" = "a"\n', "pip install --no-deps no-such-thing"),
        ('distribution = "pytest"\n[files]\n"1/a" = "pytest/no.such.file"\n', "lacks"),
        ("distribution = ", "not readable"),
        ('distribution = "pytest"', "not readable"),
        ('distribution = "pytest"\nfiles = 3', "not readable"),
    ],
)
def test_weights_that_are_not_there_say_how_to_get_them(tmp_path: Path, weights: str, told: str) -> None:
    """One error that names the model, and the repository of before stays."""
    model(tmp_path / "source", "heavy", weights)
    (tmp_path / "target").mkdir()

    with pytest.raises(ModelRepositoryError, match=told) as raised:
        materialise(tmp_path / "source", tmp_path / "target")

    assert "heavy" in str(raised.value) or "pytest" in str(raised.value)
    assert {path.name for path in tmp_path.iterdir()} == {"source", "target"}


@pytest.mark.parametrize("place", ["1/model.py", "config.pbtxt/weights"])
def test_weights_in_the_place_of_a_file_are_told(tmp_path: Path, place: str) -> None:
    """One error that names the place, and the repository of before stays."""
    model(tmp_path / "source", "heavy", f'distribution = "pytest"\n[files]\n"{place}" = "pytest/py.typed"\n')
    (tmp_path / "target").mkdir()

    with pytest.raises(ModelRepositoryError, match="heavy/") as raised:
        materialise(tmp_path / "source", tmp_path / "target")

    assert place.removesuffix("/weights") in str(raised.value)
    assert "\n" not in str(raised.value)
    assert {path.name for path in tmp_path.iterdir()} == {"source", "target"}


def test_a_folder_that_takes_no_links_is_told(tmp_path: Path) -> None:
    """As on a full disk."""
    model(tmp_path / "source", "heavy", CARRIED)
    (tmp_path / "file").touch()

    with pytest.raises(ModelRepositoryError, match=r"source.*File exists"):
        materialise(tmp_path / "source", tmp_path / "file" / "target")


def test_a_repository_that_is_none_says_so(tmp_path: Path) -> None:
    """Absent, a file, empty: each names the folder that was meant."""
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()

    with pytest.raises(ModelRepositoryError, match=r"absent.*--model-repository"):
        materialise(tmp_path / "absent", tmp_path / "target")
    with pytest.raises(ModelRepositoryError, match=r"file.*--model-repository"):
        materialise(tmp_path / "file", tmp_path / "target")
    with pytest.raises(ModelRepositoryError, match="holds no model"):
        materialise(tmp_path / "empty", tmp_path / "target")
