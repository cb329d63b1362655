"""The commands that a person types against a running stack, and how the stack ends."""

import json
import signal
import subprocess
from pathlib import Path
from typing import Any

import grpc
import pytest

from headrace.local.state import start_time
from tests.acceptance.calls import MODELS, client, held, slow, until_callable
from tests.acceptance.eventually import eventually
from tests.acceptance.metrics import metric
from tests.acceptance.stack import Stack, headrace, started_stack

SECONDS = 60.0
FAILED = 1


def run(*arguments: str, status: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(headrace(*arguments), capture_output=True, text=True, timeout=SECONDS, check=False)
    assert done.returncode == status, done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    return done


def told(stack: Stack, *arguments: str) -> Any:
    """What a command prints with --json."""
    return json.loads(run(*arguments, "--json", "--state-dir", str(stack.state_dir)).stdout)


def test_status_names_every_component(stack: Stack) -> None:
    status = told(stack, "status")

    assert (status["running"], status["ready"], status["pid"]) == (True, True, stack.ready["pid"])
    components = {each["name"]: each for each in status["components"]}
    assert components.keys() == {"broker", "triton-0", "router-0", "aggregator", "gateway-0", "envoy"}
    assert {name: each["pid"] for name, each in components.items()} == stack.ready["pids"]
    assert all(each["healthy"] for each in components.values())
    assert status["endpoints"]["grpc"] == stack.ready["grpc"]


def test_models_are_told_with_their_tensors(stack: Stack) -> None:
    models = {each["name"]: each for each in told(stack, "models")}

    assert list(models) == MODELS
    assert {each["state"] for each in models.values()} == {"READY"}
    assert models["simple"]["inputs"] == ["INPUT0 INT32[-1,16]", "INPUT1 INT32[-1,16]"]


def test_a_file_s_type_is_a_path_away(stack: Stack) -> None:
    answer = told(stack, "infer", "file_type", __file__)

    assert (answer["LABEL"], answer["MIME_TYPE"]) == (["python"], ["text/x-python"])
    assert "python" in run("infer", "file_type", __file__, "--state-dir", str(stack.state_dir)).stdout


def test_a_text_s_embedding_is_a_text_away(stack: Stack) -> None:
    answer = told(stack, "infer", "text_embedding", "water turns the wheel")

    assert len(answer["EMBEDDING"][0]) == 256


def test_inputs_are_given_by_name_or_in_order(stack: Stack) -> None:
    row, ones = json.dumps(list(range(16))), json.dumps([1] * 16)

    assert told(stack, "infer", "simple", row, ones) == told(
        stack, "infer", "simple", "--input", f"INPUT0={row}", "--input", f"INPUT1={ones}"
    )


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (("infer", "nothing", "1"), FAILED, "unknown model"),
        (("infer", "simple", "1", "2", "3"), 2, "2 inputs"),
        (("infer", "simple", "one", "two"), 2, "INPUT0"),
        (("infer", "file_type", "/no/such/file"), 2, "/no/such/file"),
        (("models", "--url", "127.0.0.1:1"), FAILED, "127.0.0.1:1"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_a_mistake_is_one_line(stack: Stack, arguments: tuple[str, ...], status: int, said: str) -> None:
    done = run(*arguments, "--state-dir", str(stack.state_dir), status=status)

    assert said in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr


def test_where_no_stack_runs_it_is_said(tmp_path: Path) -> None:
    for command in (["status"], ["models"], ["infer", "simple", "1"]):
        done = run(*command, "--state-dir", str(tmp_path / "nothing"), status=FAILED)
        assert "headrace up" in done.stderr
    assert json.loads(run("status", "--json", "--state-dir", str(tmp_path), status=FAILED).stdout)["running"] is False


@pytest.mark.usefixtures("_parts")
def test_a_stack_that_is_stopped_answers_what_runs_and_leaves_no_process(few_models: Path, tmp_path: Path) -> None:
    env = {"HEADRACE_GATEWAY__DRAIN__GRACE_SECONDS": "14"}  # just less than what `headrace up` waits for a gateway
    options = ("--model-repository", str(few_models))
    with started_stack(tmp_path, *options, env=env) as own, client(own.grpc) as gateway:
        until_callable(own, ["slow"])
        pids = {**own.ready["pids"], "up": own.ready["pid"]}
        started = {pid: start_time(pid) for pid in pids.values()}
        assert all(started.values())
        release = tmp_path / "release"
        calls = [gateway.begin(held(release)) for _ in range(4)]
        admin = own.ready["admin"][0]
        eventually(lambda: metric(admin, "headrace_gateway_calls_waiting") == 4, seconds=SECONDS, what="they wait")

        own.process.send_signal(signal.SIGINT)
        eventually(lambda: "leaving" in own.log("gateway-0"), seconds=SECONDS, what="the gateway leaves")
        release.touch()

        assert all(call.result().raw_output_contents for call in calls)
        assert own.stop() == 0
        assert not [name for name, pid in pids.items() if start_time(pid) == started[pid]]
        with pytest.raises(grpc.RpcError):
            gateway.infer(slow(1), seconds=1)
