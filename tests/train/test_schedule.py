import dataclasses
import math

import numpy as np
import pytest

from scaling.config import schema as cfg
from scaling.train.schedule import BatchSchedule, learning_rate

GPT3_175B = BatchSchedule(
    full=1536, microbatch=16, sequence_length=2048, start=16, ramp_tokens=12 * 10**9, total_tokens=300 * 10**9
)


def test_batches_tile_the_data_without_gap_or_overlap():
    position = 0
    for step in range(22_000):
        first, count = GPT3_175B.span(step)
        assert first == position and count % 16 == 0 and 16 <= count <= 1536
        position += count
    sizes = [GPT3_175B.span(s)[1] for s in range(22_000)]
    assert sizes == sorted(sizes) and sizes[0] == 16 and sizes[-1] == 1536


def test_the_ramp_is_linear_in_tokens_as_in_appendix_b():
    for step in range(0, 22_000, 500):
        tokens = GPT3_175B.tokens(step)
        if tokens < GPT3_175B.ramp_tokens:
            want = 16 + (1536 - 16) * tokens / GPT3_175B.ramp_tokens
            assert want - 16 < GPT3_175B.span(step)[1] <= want
    assert GPT3_175B.tokens(GPT3_175B.num_steps) == pytest.approx(300e9, rel=1e-5)


def test_without_a_ramp_every_step_is_full():
    schedule = dataclasses.replace(GPT3_175B, ramp_tokens=0, start=1536)
    assert [schedule.span(s) for s in (0, 1, 10**6)] == [(0, 1536), (1536, 1536), (1536 * 10**6, 1536)]
    assert schedule.num_steps == round(300e9 / (1536 * 2048))


def test_a_run_that_ends_inside_its_ramp():
    schedule = dataclasses.replace(GPT3_175B, total_tokens=10**9)
    assert schedule.tokens(schedule.num_steps) >= 10**9 > schedule.tokens(schedule.num_steps - 1)


OPTIMIZER = cfg.Optimizer(peak_lr=6e-4, warmup_tokens=375 * 10**6, decay_tokens=260 * 10**9)


def test_gpt3_cosine():
    def lr(tokens):
        return learning_rate(OPTIMIZER, int(tokens), 300 * 10**9)

    assert lr(375e6 / 2) == pytest.approx(3e-4)
    assert lr(375e6) == pytest.approx(6e-4)
    middle = (375e6 + 260e9) / 2
    assert lr(middle) == pytest.approx(6e-4 * 0.55)
    quarter = 375e6 + (260e9 - 375e6) / 4
    assert lr(quarter) == pytest.approx(6e-4 * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi / 4))))
    assert lr(260e9) == lr(300e9) == pytest.approx(6e-5)


def test_inverse_sqrt_stays_and_falls_with_the_root():
    optimizer = cfg.Optimizer(peak_lr=1.0, schedule="inverse_sqrt", warmup_tokens=100, decay_tokens=400)
    rates = [learning_rate(optimizer, tokens, 10**4) for tokens in (50, 100, 400, 1600, 10**4)]
    assert rates == pytest.approx([0.5, 1.0, 1.0, 0.5, 0.2])


def test_wsd_linear_and_constant():
    tokens = np.asarray([100, 500, 800, 900, 1000])

    def curve(schedule, decay):
        optimizer = cfg.Optimizer(
            peak_lr=1.0, schedule=schedule, warmup_tokens=200, decay_tokens=decay, final_fraction=0.0
        )
        return [learning_rate(optimizer, int(t), 1000) for t in tokens]

    np.testing.assert_allclose(curve("wsd", 200), [0.5, 1, 1, 0.5, 0], atol=1e-12)
    np.testing.assert_allclose(curve("linear", 1000), [0.5, 0.625, 0.25, 0.125, 0], atol=1e-12)
    np.testing.assert_allclose(curve("constant", 1000), [0.5, 1, 1, 1, 1])
