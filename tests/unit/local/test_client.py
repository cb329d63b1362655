"""What a person types for an input, as the tensor that a model wants."""

from pathlib import Path

import numpy as np
import pytest

from headrace.local.client import InputError, TensorShape, parse_inputs

NUMBERS = TensorShape(name="IN", datatype="INT32", shape=(-1, 4))
TEXT = TensorShape(name="TEXT", datatype="BYTES", shape=(-1, 1))
ANY = TensorShape(name="IN", datatype="FP32", shape=(-1, -1))


def test_a_list_of_numbers_gets_the_batchs_dimension() -> None:
    values = parse_inputs(["IN=[1, 2, 3, 4]"], [NUMBERS])["IN"]

    assert values.dtype == np.int32
    assert values.tolist() == [[1, 2, 3, 4]]


def test_a_batch_stays_a_batch() -> None:
    assert parse_inputs(["IN=[[1,2,3,4],[5,6,7,8]]"], [NUMBERS])["IN"].shape == (2, 4)


def test_with_two_open_dimensions_the_values_are_one_row() -> None:
    assert parse_inputs(["IN=[1, 2.5]"], [ANY])["IN"].tolist() == [[1, 2.5]]


@pytest.mark.parametrize("text", ["water = life", "ключ 🔑", "", "5"])
def test_text_is_taken_as_it_is(text: str) -> None:
    assert parse_inputs([f"TEXT={text}"], [TEXT])["TEXT"].tolist() == [[text.encode()]]


def test_texts_as_json_are_a_batch() -> None:
    assert parse_inputs(['TEXT=["a", "b"]'], [TEXT])["TEXT"].tolist() == [[b"a"], [b"b"]]


def test_a_file_is_its_bytes_for_a_model_that_takes_bytes(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"\x00\xff\n")

    assert parse_inputs([f"TEXT=@{tmp_path / 'f'}"], [TEXT])["TEXT"].tolist() == [[b"\x00\xff\n"]]


def test_numpys_own_files_are_read(tmp_path: Path) -> None:
    np.save(tmp_path / "f.npy", np.arange(4))

    assert parse_inputs([f"IN=@{tmp_path / 'f.npy'}"], [NUMBERS])["IN"].tolist() == [[0, 1, 2, 3]]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["IN=[1,2,3]"], r"IN INT32\[-1,4\] does not take values of shape \[3\]"),
        (["IN=[1,2,3,4.5]"], "does not fit into int32"),
        (["IN=[1,2,3,3000000000]"], "does not fit into int32"),
        (["IN=[[1],[2,3]]"], "expected INT32 values as JSON"),
        (["IN=water"], "expected INT32 values as JSON"),
        (["OTHER=1"], r"expected NAME=VALUE with one of IN INT32\[-1,4\]"),
        (["IN"], "expected NAME=VALUE"),
        ([], r"missing: IN INT32\[-1,4\]"),
        (["IN=@/nowhere"], "can't read /nowhere: No such file"),
    ],
)
def test_what_does_not_fit_is_refused_and_the_input_named(given: list[str], said: str) -> None:
    with pytest.raises(InputError, match=said):
        parse_inputs(given, [NUMBERS])
