"""Schedules of the learning rate against those of torch and transformers, and what identity they leave a run."""

import pytest
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, SequentialLR
from transformers.optimization import get_scheduler

from pipeline.training.methods.optim import rate_of
from pipeline.training.methods.schedule import learning_rate
from pipeline.training.recipe import training_params
from pipeline.training.settings import Settings
from tests.training.knobs import SETTINGS

NUM_STEPS, PEAK = 40, 3e-4
WARMUP = {0.0: 0, 0.1: 4, 0.33: 14}


def rates(warmup_ratio, min_lr_ratio=0.0, **form):
    return [learning_rate(step, NUM_STEPS, PEAK, warmup_ratio, min_lr_ratio, **form) for step in range(NUM_STEPS)]


def rates_of(make):
    """The rates that a scheduler of torch's kind gives each step."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=PEAK)
    scheduler = make(optimizer)
    found = []
    for _ in range(NUM_STEPS):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


def transformers_rates(name, warmup, **options):
    return rates_of(lambda optimizer: get_scheduler(name, optimizer, warmup, NUM_STEPS, options or None))


def assert_equal(found, expected, num_warmup):
    """Ours warms up one step ahead of transformers, which takes its first step at a rate of 0."""
    assert found[num_warmup:] == pytest.approx(expected[num_warmup:], rel=1e-12, abs=1e-18)
    assert found[: max(0, num_warmup - 1)] == pytest.approx(expected[1:num_warmup], rel=1e-12)


@pytest.mark.parametrize("ratio", WARMUP)
@pytest.mark.parametrize(
    ("name", "form", "reference", "options"),
    [
        ("cosine", {}, "cosine", {}),
        ("cosine", {"min_lr_ratio": 0.1}, "cosine_with_min_lr", {"min_lr_rate": 0.1}),
        ("linear", {}, "linear", {}),
        ("constant", {}, "constant_with_warmup", {}),
    ],
)
def test_schedules_are_those_of_transformers(name, form, reference, options, ratio):
    expected = transformers_rates(reference, WARMUP[ratio], **options)
    assert_equal(rates(ratio, schedule=name, **form), expected, WARMUP[ratio])


@pytest.mark.parametrize("shape", ["linear", "cosine", "1-sqrt"])
def test_wsd_is_that_of_transformers(shape):
    found = rates(0.1, 0.1, schedule="wsd", decay=shape, decay_ratio=0.25)
    expected = transformers_rates("warmup_stable_decay", 4, num_decay_steps=10, decay_type=shape, min_lr_ratio=0.1)
    assert found[4:] == pytest.approx(expected[4:], rel=1e-12)
    assert found[4:30] == [PEAK] * 26 and found[30] == PEAK > found[31]


def test_the_default_is_what_torch_chains():
    """Against torch's own schedulers: a warm-up that reaches the peak with its last step, then the cosine."""
    warm = 1 / 14
    expected = rates_of(
        lambda one: SequentialLR(
            one,
            [LinearLR(one, warm, total_iters=13), CosineAnnealingLR(one, NUM_STEPS - 14, eta_min=0.1 * PEAK)],
            [14],
        )
    )
    assert rates(0.33, 0.1) == pytest.approx(expected, rel=1e-9)


def test_a_second_round_re_warms_from_the_floor_of_the_first():
    """As transformers' `warmup_lr_rate`; a run to the floor and a run from it meet."""
    first, second = rates(0.33, 0.2), rates(0.33, 0.2, warmup_from=0.2)
    expected = transformers_rates("cosine_warmup_with_min_lr", 14, min_lr_rate=0.2, warmup_lr_rate=0.2)
    assert second[:14] == pytest.approx(expected[:14], rel=1e-12)
    assert second[0] == pytest.approx(0.2 * PEAK) and second[13:] == first[13:]
    assert rates(0.01, warmup_from=0.5)[0] == PEAK  # a warm-up of one step ends where it begins


def test_wsd_of_a_warm_up_and_a_decay_that_meet_has_no_plateau():
    found = rates(0.5, schedule="wsd", decay="linear", decay_ratio=0.9)
    assert found[19] == found[20] == PEAK and found[21] < PEAK


def section(**changes):
    return {**SETTINGS, "schedule": "cosine", "warmup_from": None, "decay": "linear", "decay_ratio": 0.1, **changes}


def test_what_has_no_effect_is_no_part_of_the_identity():
    plain = {key: value for key, value in SETTINGS.items() if key != "router_balance"} | {"track": None}
    assert training_params(section()) == training_params(section(decay_ratio=0.5)) == plain
    assert training_params(section(schedule="constant")) == {**plain, "schedule": "constant"}
    wsd = training_params(section(schedule="wsd", warmup_from=0.1))
    assert wsd == {**plain, "schedule": "wsd", "decay": "linear", "decay_ratio": 0.1, "warmup_from": 0.1}


def test_settings_give_the_rate_of_a_step():
    settings = Settings.of(training_params(section(schedule="linear", lr=1.0, warmup_ratio=0.0)))
    assert [rate_of(settings, step, 4) for step in range(4)] == [1.0, 0.75, 0.5, 0.25]
    assert rate_of(Settings.of(SETTINGS), 3, 10) == learning_rate(3, 10, SETTINGS["lr"], SETTINGS["warmup_ratio"], 0.0)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"schedule": "cosin"}, "schedule='cosin' is not known; use one of cosine, linear, constant, wsd"),
        ({"schedule": "wsd", "decay": "exp"}, "decay='exp' is not known; use one of linear, cosine, 1-sqrt"),
        ({"schedule": "wsd", "decay_ratio": 0.0}, "decay_ratio=0.0 must be more than 0"),
        ({"schedule": "wsd", "decay_ratio": 1.5}, "decay_ratio=1.5 must be more than 0"),
        ({"warmup_from": 2.0}, "warmup_from=2.0 must be at least 0"),
        ({"warmup_from": 0.1, "warmup_ratio": 0.0}, "has no effect without a warm-up"),
        ({"schedule": None}, "schedule=None must be text"),
    ],
)
def test_what_is_no_schedule_is_refused(changes, told):
    with pytest.raises(ValueError, match=told):
        Settings.of(training_params(section(**changes)))
