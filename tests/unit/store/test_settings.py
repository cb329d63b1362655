"""Where the database is."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from headrace.store.settings import DatabaseSettings, database_url


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://headrace@db:5432/headrace",
        "postgresql://headrace@db/headrace?sslmode=verify-full&sslrootcert=/ca.pem",
        "postgresql://headrace@[::1]:5432/headrace",
        "sqlite:////var/lib/headrace/headrace.db",
    ],
)
def test_what_names_a_database(url: str) -> None:
    assert database_url(url) == url


@pytest.mark.parametrize(
    "url",
    [
        "",
        "headrace.db",
        "sqlite:///relative.db",
        "sqlite://",
        "sqlite:////folder/",
        "sqlite:////file.db?mode=ro",
        "postgresql://db",
        "postgresql:///headrace",
        "postgresql://u@db:port/x",
        "postgres://u@db/x",
        "postgresql+psycopg://u@db/x",
        "mysql://u@db/x",
    ],
)
def test_what_names_none(url: str) -> None:
    with pytest.raises(ValueError, match=r"must be postgresql://"):
        database_url(url)


def test_a_password_in_the_url_is_refused_and_not_repeated() -> None:
    with pytest.raises(ValueError, match=r"must hold no password.*HEADRACE_DATABASE__PASSWORD_FILE") as refused:
        database_url("postgresql://u:hunter2@db/x")
    assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize("word", ["password", "PASSWORD", "pass%77ord", "sslpassword", "passfile"])
def test_a_password_among_the_words_of_libpq_is_refused_and_not_repeated(word: str) -> None:
    with pytest.raises(ValueError, match="must hold no password") as refused:
        database_url(f"postgresql://u@db/x?sslmode=require&{word}=hunter2")
    assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize("word", ["options", "connect_timeout"])
def test_what_is_ours_to_set_is_refused_by_name(word: str) -> None:
    with pytest.raises(ValueError, match=f"must not set {word}"):
        database_url(f"postgresql://u@db/x?{word}=9")


def test_a_password_is_for_postgresql_alone(tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_text("x")
    with pytest.raises(ValidationError, match="needs a url of PostgreSQL"):
        DatabaseSettings(url="sqlite:////x.db", password_file=file)
    assert DatabaseSettings(url="postgresql://u@db/x", password_file=file).password_file == file
