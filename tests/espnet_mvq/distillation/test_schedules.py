"""The weight of the loss, update by update."""

import pytest

from espnet_mvq.distillation import WeightSchedule

DECAY = {"decay_start_update": 5, "decay_end_update": 9}


def weights(conf, updates, weight=1.0):
    schedule = WeightSchedule.from_dict(conf, weight)
    return [schedule.weight_at(update) for update in updates]


@pytest.mark.parametrize("conf", [None, {}])
def test_without_options_the_weight_is_constant(conf):
    assert weights(conf, [0, 1, 10**9], weight=0.3) == [0.3] * 3


def test_weight_rises_stays_falls_and_ends():
    conf = {"warmup_updates": 4, "decay_start_update": 6, "decay_end_update": 10}
    conf["stop_update"] = 9
    expected = [0, 0.5, 1, 1.5, 2, 2, 2, 1.5, 1, 0, 0, 0]
    assert weights(conf, range(12), weight=2.0) == expected


@pytest.mark.parametrize(
    "conf, expected",
    [
        ({"warmup_updates": 2}, [0, 0.5, 1, 1, 1]),
        ({"decay_start_update": 1, "decay_end_update": 3}, [1, 1, 0.5, 0, 0]),
        ({"decay_start_update": 2, "decay_end_update": 2}, [1, 1, 1, 0, 0]),
        ({"stop_update": 2}, [1, 1, 0, 0, 0]),
        ({"stop_update": 0}, [0, 0, 0, 0, 0]),
        ({"warmup_updates": 2, "stop_update": 2}, [0, 0.5, 0, 0, 0]),
        (
            {"warmup_updates": 2, "decay_start_update": 2, "decay_end_update": 4},
            [0, 0.5, 1, 0.5, 0],
        ),
        ({"weight": 0}, [0, 0, 0, 0, 0]),
    ],
)
def test_every_part_can_be_left_out(conf, expected):
    assert weights(conf, range(5)) == expected


def test_weight_never_leaves_its_range():
    schedule = WeightSchedule(0.7, 13, 29, 61)
    values = [schedule.weight_at(update) for update in range(100)]
    assert min(values) == 0 and max(values) == 0.7
    assert values[:30] == sorted(values[:30])
    assert values[29:] == sorted(values[29:], reverse=True)


@pytest.mark.parametrize(
    "conf, message",
    [
        ({"warm_up": 3}, "unknown option: warm_up; expected some of weight, warmup_"),
        ({"weight": -1.0}, "weight: got -1.0"),
        ({"weight": "1"}, "weight: got '1'"),
        ({"weight": float("nan")}, "weight: got nan"),
        ({"warmup_updates": -1}, "warmup_updates: got -1"),
        ({"warmup_updates": None}, "warmup_updates: got None"),
        ({"stop_update": "1e5"}, "stop_update: got '1e5', expected a whole number"),
        ({"stop_update": 2.5}, "stop_update: got 2.5"),
        ({"stop_update": True}, "stop_update: got True"),
        ({"decay_end_update": 5}, "decay_end_update 5, expected both or none"),
        ({**DECAY, "decay_end_update": 4}, "_start_update 5 and decay_end_update 4"),
        ({**DECAY, "warmup_updates": 6}, "got warmup_updates 6 and decay_start_up.* 5"),
        ({"warmup_updates": 6, "stop_update": 5}, "stop_update not to be before"),
    ],
)
def test_bad_options_are_refused(conf, message):
    with pytest.raises(ValueError, match=message):
        WeightSchedule.from_dict(conf)
