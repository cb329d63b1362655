"""How many calls of a model run at once."""

import pytest
from tritonclient.grpc.model_config_pb2 import ModelConfig

from router.settings import WindowSettings
from router.window import WINDOW_PARAMETER, Lane, window_of

BOUNDS = WindowSettings(batches_per_instance=2, minimum=4, maximum=100)


def config(*, batch: int = 0, instances: tuple[tuple[int, int], ...] = (), own: str | None = None) -> ModelConfig:
    made = ModelConfig(max_batch_size=batch)
    for count, gpus in instances:
        made.instance_group.add(count=count, gpus=range(gpus))
    if own is not None:
        made.parameters[WINDOW_PARAMETER].string_value = own
    return made


@pytest.mark.parametrize(
    ("described", "window"),
    [
        (config(), 4),
        (config(batch=8), 16),
        (config(batch=8, instances=((2, 0),)), 32),
        (config(batch=8, instances=((2, 0), (1, 0))), 48),
        (config(batch=4, instances=((1, 3),)), 24),
        (config(batch=64, instances=((4, 0),)), 100),
        (config(instances=((0, 0),)), 4),
        (config(batch=8, own="1"), 1),
        (config(batch=8, own="300"), 300),
        (config(batch=8, own="0"), 16),
        (config(batch=8, own="-3"), 16),
        (config(batch=8, own="many"), 16),
        (config(batch=8, own=""), 16),
    ],
)
def test_the_window_follows_the_models_config_within_bounds(described: ModelConfig, window: int) -> None:
    assert window_of(described, BOUNDS) == window


def test_a_lane_pauses_when_a_window_waits_behind_a_window_and_goes_on_when_half_a_window_is_free() -> None:
    lane = Lane("t", window=4)
    lane.running, lane.aside = 4, 3
    assert not lane.wants_pause()
    lane.aside = 4
    assert lane.wants_pause()

    lane.paused = True
    assert not lane.wants_pause()
    lane.aside = 3
    assert not lane.wants_resume()
    lane.aside = 2
    assert lane.wants_resume()
