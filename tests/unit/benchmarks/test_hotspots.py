"""How samples become tables."""

import pytest

from benchmarks.hotspots import Profile, place


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        ("/x/lib/python3.11/site-packages/grpc/aio/_call.py", "grpc"),
        ("/home/me/headrace/gateway/infer.py", "gateway.infer"),
        ("/home/me/headrace/headrace/bus/rotation.py", "headrace.bus.rotation"),
        ("gateway/infer.py", "gateway.infer"),
        ("/usr/lib/python3.11/asyncio/events.py", "asyncio.events"),
        ("libc.so.6", "libc.so.6"),
    ],
)
def test_code_is_named_by_own_module_or_by_package(file: str, expected: str) -> None:
    assert place(file) == expected


def test_a_function_is_charged_alone_for_its_own_samples_and_once_for_each_stack_that_it_is_in() -> None:
    main, walk = "main (gateway/app.py)", "walk (gateway/infer.py)"

    profile = Profile([f"{main};{walk};{walk} 3", f"{main} 1"])

    assert profile.samples == 4
    assert profile.alone == {"gateway.infer walk": 3, "gateway.app main": 1}
    assert profile.together == {"gateway.infer walk": 3, "gateway.app main": 4}
