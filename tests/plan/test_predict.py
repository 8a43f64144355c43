"""What a prediction says of traffic between slices, of decoding, of layers and of work done twice."""

import dataclasses
from pathlib import Path

import pytest

from scaling import chips
from scaling.plan import hlo, predict

V5E = chips.find("v5e")


def module(name):
    return hlo.parse(Path(__file__).with_name(name).read_text())


def test_traffic_between_slices_is_apart_and_takes_its_network():
    """In a loop of 2 an all-reduce of 4 MiB beside a product of 1 ms, behind it an all-gather of 4 MiB, by 2 slices."""
    found = predict.predict(module("slices.hlo"), V5E, slices=2)
    size, rate = 4 * 1024 * 1024, 3.125e9
    assert set(found.collectives) == {predict.BETWEEN}
    traffic = found.collectives[predict.BETWEEN]
    assert (traffic.bytes, traffic.calls) == (2 * size * 2 / 2 + size, 3)
    assert found.parts["matrix products"].seconds == pytest.approx(2e-3)
    # The product hides 1 ms of each all-reduce, nothing hides the gather.
    assert found.exposed == pytest.approx(3 * size / rate - 2e-3)
    assert traffic.hidden_bytes == pytest.approx(2e-3 * rate)
    assert found.seconds == pytest.approx(2e-3 + found.exposed)


def test_a_network_that_is_fast_enough_is_hidden_but_for_what_waits_at_once():
    fast = dataclasses.replace(V5E, between=1e12)
    found = predict.predict(module("slices.hlo"), fast, slices=2)
    assert found.exposed == pytest.approx(4 * 1024 * 1024 / 1e12)


def test_more_slices_send_more():
    two, eight = (predict.predict(module("slices.hlo"), V5E, slices=n).collectives[predict.BETWEEN] for n in (2, 8))
    size = 4 * 1024 * 1024
    assert two.bytes == 2 * size * 2 * 1 / 2 + size * 1
    assert eight.bytes == 2 * size * 2 * 7 / 8 + size * 7


def test_every_tpu_that_can_be_planned_has_a_network_between_slices():
    assert all(chips.find(kind).between > 1e9 for kind in ("v4", "v5e", "v5p", "v6e", "v7x"))


def test_a_token_takes_as_long_as_its_bytes():
    """Weights that are brought into fast memory beforehand take no time of their own, but memory must deliver them."""
    found = predict.predict(module("decode.hlo"), V5E, runs=99).divided(99)
    table, weights, row = 2 * 8192 * 4096, 2 * 4096 * 4096, 2 * 8 * 4096
    roofline = (table + weights + row) / (0.8 * 819e9)
    assert found.parts["matrix products"].seconds == pytest.approx(4000 / 1.5e9)
    assert found.parts["unembedding"].seconds == pytest.approx(150_000 / 1.5e9)
    assert found.parts["norms and elementwise"].seconds == pytest.approx(row / (0.8 * 819e9))  # not the whole table
    assert found.parts[predict.WAITING].seconds > 0
    assert found.seconds == pytest.approx(roofline)
    # A memory ten times as fast leaves the work alone.
    fast = predict.predict(module("decode.hlo"), dataclasses.replace(V5E, hbm_bandwidth=8.19e12), runs=99)
    assert predict.WAITING not in fast.parts


def test_a_loop_whose_count_is_not_known_needs_one():
    with pytest.raises(ValueError, match="the trip count of loop cannot be read"):
        predict.predict(module("decode.hlo"), V5E)


def test_layers_and_what_is_computed_again():
    text = Path(__file__).with_name("step.hlo").read_text()
    once = predict.predict(hlo.parse(text), V5E)
    assert once.parts["matrix products"].layers == once.parts["matrix products"].seconds
    assert once.parts["norms and elementwise"].layers == 0  # the sum stands outside of the loop
    assert once.parts["matrix products"].again == 0
    again = text.replace("jit(step)/jvp()/while/body/dot_general", "jit(step)/while/rematted_computation/dot_general")
    found = predict.predict(hlo.parse(again), V5E).parts["matrix products"]
    assert found.again == found.seconds == once.parts["matrix products"].seconds
