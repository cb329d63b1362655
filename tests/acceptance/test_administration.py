"""Load and unload through the gateway: seen at once by who asked, and not for everyone to do."""

from collections.abc import Iterator

import grpc
import pytest
from tritonclient.grpc import service_pb2 as oip

from tests.acceptance.calls import Client, Message, ended, recording, refused

MODEL = "recording"


def load(client: Client) -> None:
    client.ask("RepositoryModelLoad", oip.RepositoryModelLoadRequest(model_name=MODEL))


def unload(client: Client) -> None:
    client.ask("RepositoryModelUnload", oip.RepositoryModelUnloadRequest(model_name=MODEL))


def state(client: Client) -> str:
    index = client.ask("RepositoryIndex", oip.RepositoryIndexRequest())
    return next(str(each.state) for each in index.models if each.name == MODEL)


@pytest.fixture
def _loaded_again(gateway: Client) -> Iterator[None]:
    yield
    load(gateway)


@pytest.mark.usefixtures("_loaded_again")
def test_what_was_unloaded_is_refused_and_what_was_loaded_answers(gateway: Client) -> None:
    """Without any waiting in between: the call returns when its effect is there."""
    for _ in range(2):
        unload(gateway)
        assert state(gateway) in {"UNLOADING", "UNAVAILABLE"}
        assert not gateway.ask("ModelReady", oip.ModelReadyRequest(name=MODEL)).ready
        with refused(grpc.StatusCode.UNAVAILABLE, "MODEL_NOT_READY"):
            gateway.infer(recording(b"x"))

        load(gateway)
        assert state(gateway) == "READY"
        assert gateway.ask("ModelReady", oip.ModelReadyRequest(name=MODEL)).ready
        assert gateway.infer(recording(b"x")).raw_output_contents


def test_without_the_role_nothing_changes(guest: Client, gateway: Client) -> None:
    for change in (load, unload):
        with refused(grpc.StatusCode.PERMISSION_DENIED, "ROLE_REQUIRED"):
            change(guest)

    assert state(gateway) == "READY"


def test_a_model_that_is_not_there_can_not_be_loaded(gateway: Client, triton: Client) -> None:
    """Triton's own code and text."""
    request = oip.RepositoryModelLoadRequest(model_name="nothing").SerializeToString()
    told = []
    for client in (gateway, triton):
        with pytest.raises(grpc.RpcError) as caught:
            client.send("RepositoryModelLoad", request)
        told.append(ended(caught.value))

    through, direct = told
    assert through == direct


def test_log_and_trace_settings_are_triton_s(gateway: Client, triton: Client) -> None:
    for method, request in (("LogSettings", oip.LogSettingsRequest()), ("TraceSetting", oip.TraceSettingRequest())):
        assert gateway.ask(method, request) == triton.ask(method, request)


def log_format(value: str) -> Message:
    request = oip.LogSettingsRequest()
    request.settings["log_format"].string_param = value
    return request


def trace_rate(*values: str) -> Message:
    request = oip.TraceSettingRequest()
    request.settings["trace_rate"].value.extend(values)  # without one it is Triton's own again
    return request


@pytest.mark.parametrize(
    ("method", "change", "back", "told"),
    [
        ("LogSettings", log_format("ISO8601"), log_format("default"), '"ISO8601"'),
        ("TraceSetting", trace_rate("17"), trace_rate(), '"17"'),
    ],
    ids=["log", "trace"],
)
def test_a_setting_is_set_in_triton(  # noqa: PLR0917  parametrised
    gateway: Client, triton: Client, method: str, change: Message, back: Message, told: str
) -> None:
    look = type(change)()
    before = triton.ask(method, look)
    try:
        answer = gateway.ask(method, change)

        assert told in str(answer)
        assert triton.ask(method, look) == answer != before
    finally:
        gateway.ask(method, back)
    assert triton.ask(method, look) == before
