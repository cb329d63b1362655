"""The examples that the README shows, and the calls that `headrace up` prints, run as they stand."""

import base64
import json
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from headrace.local.examples import examples
from tests.acceptance.calls import FEW_MODELS, until_callable
from tests.acceptance.stack import KEY, Stack, started_stack
from tests.parts import missing

EXAMPLES = Path(__file__).parents[2] / "examples"


def run(stack: Stack, *words: str, key: str | None = None) -> subprocess.CompletedProcess[str]:
    example, *rest = words
    program = [sys.executable] if example.endswith(".py") else []
    command = [*program, str(EXAMPLES / example), stack.grpc, key or KEY, *rest]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (("infer.py",), "sum        1 2 3 4"),
        (("infer_aio.py",), "1.000"),
        (("file_type.py", str(EXAMPLES.parent / "README.md")), "markdown, text/markdown"),
    ],
)
def test_an_example_prints_its_answer(stack: Stack, words: tuple[str, ...], answer: str) -> None:
    told = run(stack, *words)

    assert told.returncode == 0, told.stderr
    assert answer in told.stdout


def test_the_limited_example_meets_the_limit_of_the_sample_key(few_models: Path, tmp_path: Path) -> None:
    """On a stack as `headrace up` starts it: with the tenants that it makes."""
    with started_stack(tmp_path, "--model-repository", str(few_models)) as running:
        until_callable(running, FEW_MODELS)
        began = time.monotonic()
        told = run(running, "limited.py", key=running.ready["sample_key"])
        elapsed = time.monotonic() - began

    assert told.returncode == 0, told.stderr
    assert "sees       simple\n" in told.stdout
    answered = re.search(r"^answered   (\d+)$", told.stdout, re.MULTILINE)
    assert answered
    # Five at once, of which asking what there is was one; a slow machine has the next ones already.
    assert 4 <= int(answered[1]) <= 5 + 2 * elapsed
    assert "refused    RATE_LIMITED: The limit of 2 calls a second for tenant sample is used up" in told.stdout
    back = re.search(r"^come back  in (\d+\.\d+) s$", told.stdout, re.MULTILINE)
    assert back
    assert 0 <= float(back[1]) <= 0.5


def test_an_example_with_a_wrong_key_says_the_reason(stack: Stack) -> None:
    told = run(stack, "file_type.py", str(EXAMPLES / "infer.py"), key="hr_nobody_wrong")

    assert told.returncode == 1
    assert "KEY_INVALID" in told.stderr
    assert "Traceback" not in told.stderr


@pytest.fixture
def _grpcurl() -> None:
    if shutil.which("grpcurl") is None:
        missing("grpcurl", "go install github.com/fullstorydev/grpcurl/cmd/grpcurl@v1.9.3")


@pytest.mark.usefixtures("_grpcurl")
def test_the_grpcurl_example_needs_no_proto_file(stack: Stack) -> None:
    told = run(stack, "grpcurl.sh")

    assert told.returncode == 0, told.stderr
    assert '"SERVING"' in told.stdout
    assert '"EMBEDDING"' in told.stdout


def pasted(stack: Stack, title: str, tmp_path: Path) -> str:
    """What a printed call answers in a shell of its own, in a folder that is not the checkout's."""
    (command,) = (each.command for each in examples(stack.grpc, stack.http, KEY) if each.title.startswith(title))
    shell = ["/bin/sh", "-c", command]
    told = subprocess.run(shell, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert told.returncode == 0, told.stderr
    return told.stdout


def test_the_printed_python_call_answers(stack: Stack, tmp_path: Path) -> None:
    assert pasted(stack, "Python", tmp_path).split() == ["[[", *map(str, range(1, 16)), "16]]"]


def test_the_printed_curl_call_answers(stack: Stack, tmp_path: Path) -> None:
    if shutil.which("curl") is None:
        missing("curl", "apt-get install curl")

    [output] = json.loads(pasted(stack, "curl", tmp_path))["outputs"]

    assert (output["name"], len(output["data"])) == ("EMBEDDING", 256)


@pytest.mark.usefixtures("_grpcurl")
def test_the_printed_grpcurl_call_answers(stack: Stack, tmp_path: Path) -> None:
    answer = json.loads(pasted(stack, "grpcurl", tmp_path))

    assert [output["name"] for output in answer["outputs"]] == ["EMBEDDING"]
    assert len(base64.b64decode(answer["raw_output_contents"][0])) == 256 * 4
