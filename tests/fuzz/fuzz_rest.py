"""Random bodies of REST calls of `infer`: `make fuzz`.

Every other one is an array of random bytes, which is hardly ever JSON; the others have the names and some of the values
that the protocol knows, wherever the random bytes put them.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["gateway.rest"]):
    sys.path.insert(0, str(Path(__file__).parents[2]))
    from gateway.rest.tensors import DATATYPES
    from tests.fuzz.rest_bodies import assert_refused_or_whole

NAMES = ["name", "shape", "datatype", "data", "parameters", "binary_data_size", "binary_data", "classification", "id"]
WORDS = ["x", "\ud800", *sorted(DATATYPES)]
NUMBERS = [0, 1, 2, -1, 127, 128, 1 << 31, 1 << 63, 1 << 64, 0.5, 1e39, float("nan"), float("inf")]


def value(data: atheris.FuzzedDataProvider, depth: int) -> object:
    """Any JSON, of the things that the protocol is made of."""
    makers: list[Callable[[], object]] = [
        lambda: data.PickValueInList(NUMBERS),
        lambda: data.PickValueInList(WORDS),
        lambda: data.PickValueInList([None, True, False]),
        lambda: data.ConsumeInt(8),
        lambda: [data.ConsumeIntInRange(0, 2) for _ in range(data.ConsumeIntInRange(0, 4))],
    ]
    if depth:
        makers += [
            lambda: [value(data, depth - 1) for _ in range(data.ConsumeIntInRange(0, 3))],
            lambda: {data.PickValueInList(NAMES): value(data, depth - 1) for _ in range(data.ConsumeIntInRange(0, 5))},
        ]
    made: object = data.PickValueInList(makers)()
    return made


def tensor(data: atheris.FuzzedDataProvider) -> object:
    """An input or output that is nearly right."""
    entry: dict[str, object] = {"name": "x", "shape": [2], "datatype": data.PickValueInList(sorted(DATATYPES))}
    if data.ConsumeBool():
        entry["parameters"] = {"binary_data_size": data.ConsumeIntInRange(0, 9)}
    else:
        entry["data"] = [data.PickValueInList([*NUMBERS, *WORDS]) for _ in range(2)]
    if data.ConsumeBool():
        entry[data.PickValueInList(NAMES)] = value(data, 3)
    return entry


def one(given: bytes) -> None:
    """Read one body."""
    data = atheris.FuzzedDataProvider(given)
    whole, shift = data.ConsumeBool(), data.ConsumeIntInRange(-1, 1)
    if data.ConsumeBool():
        body = data.ConsumeBytes(len(given))
        assert_refused_or_whole(body, None if whole else len(body) // 2 + shift)
        return
    document = {
        "inputs": [tensor(data) for _ in range(data.ConsumeIntInRange(0, 2))],
        data.PickValueInList(["outputs", "parameters", "id", "x"]): [tensor(data)] if whole else value(data, 3),
    }
    text = json.dumps(document).encode()
    assert_refused_or_whole(text + data.ConsumeBytes(9), len(text) + shift)


def main() -> None:
    """Run until a body is found that is read wrong, or time is up."""
    atheris.Setup(sys.argv, one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
