"""Calls a model with NVIDIA's own client, or over REST, as anybody would who uses it, until standard input ends.

Each caller calls once more then, so that the report holds what it sees after the last thing that the test did.
Runs in a pod. Says `ready` once a call has succeeded, and at the end one line of JSON: when each answer came and how
long it took, and each error with its time. What a call answers is compared with what it asked; nothing here tries
twice.
"""

import argparse
import itertools
import json
import os
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from tritonclient import grpc

DEADLINE_SECONDS = 60.0
NUMBERS = itertools.count()
OWN_CONNECTION = [("grpc.use_local_subchannel_pool", 1)]
"""As callers in processes of their own have; clients of one process share one by default."""


def simple(client: grpc.InferenceServerClient, headers: dict[str, str], _seconds: float) -> None:
    """The model that adds and subtracts: another question each time."""
    left = np.full((1, 16), next(NUMBERS) % 1_000_000, np.int32)
    right = np.arange(16, dtype=np.int32).reshape(1, 16)
    result = client.infer("simple", [_tensor("INPUT0", left), _tensor("INPUT1", right)], headers=headers)
    for name, expected in (("OUTPUT0", left + right), ("OUTPUT1", left - right)):
        if not np.array_equal(result.as_numpy(name), expected):
            raise AssertionError(f"a wrong answer in {name}")


def slow(client: grpc.InferenceServerClient, headers: dict[str, str], seconds: float) -> None:
    """The model that takes its time, and tells which question it answers."""
    asked = _question(seconds)
    result = client.infer("slow", [_tensor("SECONDS", asked)], headers=headers, client_timeout=DEADLINE_SECONDS)
    if not np.array_equal(result.as_numpy("ECHO"), asked):
        raise AssertionError("a wrong answer")


def slow_by_rest(url: str, headers: dict[str, str], seconds: float) -> None:
    """The same as those who have no gRPC ask it: over a connection of its own."""
    asked = _question(seconds)
    tensor = {"name": "SECONDS", "datatype": "FP32", "shape": asked.shape, "data": asked.flatten().tolist()}
    request = urllib.request.Request(
        f"http://{url}/v2/models/slow/infer", json.dumps({"inputs": [tensor]}).encode(), headers
    )
    with urllib.request.urlopen(request, timeout=DEADLINE_SECONDS) as answer:  # noqa: S310  of the test
        (output,) = json.load(answer)["outputs"]
    if output["name"] != "ECHO" or not np.array_equal(np.array(output["data"], np.float32), asked.flatten()):
        raise AssertionError("a wrong answer")


MODELS: dict[str, Callable[[grpc.InferenceServerClient, dict[str, str], float], None]] = {
    "simple": simple,
    "slow": slow,
}


def _question(seconds: float) -> "np.ndarray[Any, Any]":
    return np.array([[seconds, next(NUMBERS) % 1_000_000]], np.float32)


def _tensor(name: str, values: "np.ndarray[Any, Any]") -> grpc.InferInput:
    tensor = grpc.InferInput(name, values.shape, "INT32" if values.dtype == np.int32 else "FP32")
    tensor.set_data_from_numpy(values)
    return tensor


@contextmanager
def asking(options: argparse.Namespace, headers: dict[str, str]) -> Iterator[Callable[[], None]]:
    """One caller; what it yields makes one call."""
    if options.rest:
        yield lambda: slow_by_rest(options.url, headers, options.seconds)
        return
    with grpc.InferenceServerClient(options.url, channel_args=OWN_CONNECTION) as client:
        yield lambda: MODELS[options.model](client, headers, options.seconds)


def main() -> None:
    """Call with several clients at once, and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", required=True)
    parser.add_argument("--model", choices=MODELS, default="simple")
    parser.add_argument("--rest", action="store_true", help="call `slow` over REST")
    parser.add_argument("--seconds", type=float, default=0.0, help="how long `slow` takes")
    parser.add_argument("--callers", type=int, default=4)
    parser.add_argument("--calls", type=int, help="end after so many")
    parser.add_argument("--pause", type=float, default=0.02, help="seconds between a caller's calls")
    options = parser.parse_args()
    headers = {"authorization": f"Bearer {os.environ['HEADRACE_KEY']}"}
    ended, announced = threading.Event(), threading.Event()
    answered: list[tuple[float, float]] = []
    errors: list[dict[str, object]] = []
    left: Iterator[int] = iter(range(options.calls)) if options.calls is not None else itertools.count()

    def announce() -> None:
        if not announced.is_set():
            announced.set()
            print("ready", flush=True)  # noqa: T201  read by the test

    def call() -> None:
        with asking(options, headers) as ask:
            last = False
            while not last and next(left, None) is not None:
                last, began = ended.is_set(), time.time()
                try:
                    ask()
                    answered.append((round(time.time(), 3), round(time.time() - began, 3)))
                except Exception as exc:  # noqa: BLE001  whatever it is, it is what a user saw
                    took = round(time.time() - began, 3)
                    errors.append({"at": round(time.time(), 3), "took": took, "text": str(exc)[:300]})
                if answered:
                    announce()
                ended.wait(options.pause)

    callers = [threading.Thread(target=call) for _ in range(options.callers)]
    for caller in callers:
        caller.start()
    if options.calls is None:
        sys.stdin.read()
        ended.set()
    for caller in callers:
        caller.join()
    print(json.dumps({"answered": answered, "errors": errors}), flush=True)  # noqa: T201  the same


if __name__ == "__main__":
    main()
