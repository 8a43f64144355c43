"""What a prediction says of traffic between slices, of decoding, of layers and of work done twice."""

import dataclasses
from pathlib import Path

import pytest

from scaling.catalog import chips
from scaling.plan import hlo, predict, traffic

V5E = chips.find("v5e")


def module(name):
    return hlo.parse(Path(__file__).with_name(name).read_text())


def test_traffic_between_slices_is_apart_and_takes_its_network():
    """In a loop of 2 an all-reduce of 4 MiB beside a product of 1 ms, behind it an all-gather of 4 MiB, by 2 slices."""
    found = predict.predict(module("slices.hlo"), V5E)
    size, rate = 4 * 1024 * 1024, 3.125e9
    assert set(found.collectives) == {predict.BETWEEN}
    between = found.collectives[predict.BETWEEN]
    assert (between.bytes, between.calls) == (2 * size * 2 / 2 + size, 3)
    assert found.parts["matrix products"].seconds == pytest.approx(2e-3)
    # The product hides 1 ms of each all-reduce, nothing hides the gather.
    assert found.exposed == pytest.approx(3 * size / rate - 2e-3)
    assert between.hidden_bytes == pytest.approx(2e-3 * rate)
    assert found.seconds == pytest.approx(2e-3 + found.exposed)


def test_a_network_that_is_fast_enough_is_hidden_but_for_what_waits_at_once():
    fast = dataclasses.replace(V5E, between=1e12)
    found = predict.predict(module("slices.hlo"), fast)
    assert found.exposed == pytest.approx(4 * 1024 * 1024 / 1e12)


@pytest.mark.parametrize(
    ("target", "slices"),
    [
        ('"{1,2,3,4}x{0:3}"', 4),
        ('"{1:8}x{0:3}"', 8),
        ("{{100000,200000,300000},{100001,200001,300001}}", 3),
    ],
)
def test_more_slices_send_more(target, slices):
    text = Path(__file__).with_name("slices.hlo").read_text().replace('"{1,2}x{0:3}"', target)
    size = 4 * 1024 * 1024
    sent = predict.predict(hlo.parse(text), V5E).collectives[predict.BETWEEN].bytes
    assert sent == pytest.approx(2 * size * 2 * (slices - 1) / slices + size * (slices - 1))


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


def test_a_loop_whose_count_is_not_known_counts_once():
    found, once = predict.predict(module("decode.hlo"), V5E), predict.predict(module("decode.hlo"), V5E, runs=1)
    assert found.seconds == once.seconds and not once.unread
    assert found.unread == ("how often loop runs (counted once)",)


def test_layers_and_what_is_computed_again():
    text = Path(__file__).with_name("step.hlo").read_text()
    once = predict.predict(hlo.parse(text), V5E)
    assert once.parts["matrix products"].layers == once.parts["matrix products"].seconds
    assert once.parts["norms and elementwise"].layers == 0  # the sum stands outside of the loop
    assert once.parts["matrix products"].again == 0
    again = text.replace("jit(step)/jvp()/while/body/dot_general", "jit(step)/while/rematted_computation/dot_general")
    found = predict.predict(hlo.parse(again), V5E).parts["matrix products"]
    assert found.again == found.seconds == once.parts["matrix products"].seconds


def test_what_is_handed_through_moves_nothing():
    """Beside an asynchronous collective, a fusion passes its buffers on: only the product's own arrays are moved."""
    text = """HloModule handed

%fused (p0: bf16[1024,1024], p1: bf16[1024,1024], p2: bf16[64,1024,1024]) -> (bf16[1024,1024], bf16[64,1024,1024]) {
  %p0 = bf16[1024,1024]{1,0} parameter(0)
  %p1 = bf16[1024,1024]{1,0} parameter(1)
  %p2 = bf16[64,1024,1024]{2,1,0} parameter(2)
  %product = bf16[1024,1024]{1,0} add(%p0, %p1)
  ROOT %tuple = (bf16[1024,1024]{1,0}, bf16[64,1024,1024]{2,1,0}) tuple(%product, %p2)
}

ENTRY %main (a: bf16[1024,1024], b: bf16[1024,1024], c: bf16[64,1024,1024]) -> bf16[1024,1024] {
  %a = bf16[1024,1024]{1,0} parameter(0)
  %b = bf16[1024,1024]{1,0} parameter(1)
  %c = bf16[64,1024,1024]{2,1,0} parameter(2)
  %f = (bf16[1024,1024]{1,0}, bf16[64,1024,1024]{2,1,0}) fusion(%a, %b, %c), kind=kLoop, calls=%fused
  ROOT %out = bf16[1024,1024]{1,0} get-tuple-element(%f), index=0
}
"""
    program = hlo.parse(text)
    fusion = next(i for i, _ in program.walk(None) if i.opcode == "fusion")
    assert traffic.bytes_moved(program, fusion) == 3 * 2 * 1024**2


def test_a_slice_in_a_fusion_of_a_fusion_moves_only_what_it_touches():
    """As libtpu 0.0.52 compiles a product for v6e: the whole stack would be counted as waiting for memory."""
    program = module("nested.hlo")
    (product,) = [i for i, _ in program.walk() if i.opcode == "fusion"]
    layer, x, gradient = 2 * 64 * 256, 2 * 64 * 128, 2 * 256 * 128
    assert traffic.bytes_moved(program, product) == layer + x + gradient
    # For v7x it says inside the fusion that the stack is laid out in other tiles.
    text = Path(__file__).with_name("nested.hlo").read_text()
    other = text.replace("fusion(%stack.2, %layer.2)", "fusion(%tiles, %layer.2)").replace(
        "  %layer.2 = ",
        "  %tiles = bf16[24,64,256]{2,1,0:T(16,128)(2,1)} fusion(%stack.2), kind=kLoop, "
        "output_to_operand_aliasing={{}: (0, {})}, calls=%copied\n  %layer.2 = ",
    )
    assert other.count("%tiles") == 2
    program = hlo.parse(other)
    (product,) = [i for i, _ in program.walk() if i.opcode == "fusion"]
    assert traffic.bytes_moved(program, product) == layer + x + gradient


def test_what_sparse_cores_send_is_hidden_by_the_work_between_its_beginning_and_its_end():
    """A gather beside a product of half a millisecond is hidden, a sum that is awaited at once is not."""
    chip = chips.find("v6e")
    found = predict.predict(module("offloaded.hlo"), chip)
    gathered = 24 * 2 * 2048 * 8192 * 15 / 16
    assert found.parts["matrix products"].seconds == pytest.approx(24 * 5e-4)
    gather, reduce = found.collectives["all-gather"], found.collectives["all-reduce"]
    assert (gather.bytes, gather.hidden_bytes, gather.calls) == (gathered, gathered, 24)
    assert (reduce.bytes, reduce.calls) == (2 * gathered, 24) and reduce.hidden_bytes == pytest.approx(0, abs=1)
    assert found.exposed == pytest.approx(2 * gathered / chip.link) and found.unread == ()
    # Links that are too slow for the gather let the program wait for the rest of it, and the sum waits for the gather.
    slow = predict.predict(module("offloaded.hlo"), dataclasses.replace(chip, link=chip.link / 100))
    assert slow.exposed == pytest.approx(3 * gathered / (chip.link / 100) - 24 * 5e-4)
    # By JAX and libtpu 0.0.42.1: no update, no wrapper, and a name that says nothing of what is asynchronous.
    text = Path(__file__).with_name("offloaded.hlo").read_text()
    for kind, operand in ("gather", "w"), ("reduce", "gather-done"):
        update = next(line for line in text.splitlines() if f"async-update(%{kind}-start" in line)
        text = text.replace(update + "\n", "").replace(f"%{kind}-update", f"%{kind}-start")
        before = f'async-start(), async_execution_thread="sparsecore", calls=%{kind}_async'
        after = f'call-start(%{operand}), async_execution_thread="sparsecore", to_apply=%{kind}_called'
        assert before in text
        text = text.replace(before, after).replace(f"async-done(%{kind}", f"call-done(%{kind}")
    other = predict.predict(hlo.parse(text), chip)
    assert (other.seconds, other.exposed, other.collectives) == (found.seconds, found.exposed, found.collectives)
    assert other.unread == ()


def test_copies_to_the_host_are_hidden_by_the_work_between_their_start_and_their_end():
    """Of 24 layers, what goes out beside a product of 3 ms is hidden; what comes back is awaited at once."""
    found, size = predict.predict(module("host.hlo"), V5E), 24 * 2 * 8192 * 2048
    out, back = found.collectives["to the host"], found.collectives["from the host"]
    assert (out.bytes, out.hidden_bytes, out.calls) == (size, size, 24)
    assert (back.bytes, back.calls) == (size, 24) and back.hidden_bytes == pytest.approx(0, abs=1)
    assert found.parts[predict.HOST].seconds == pytest.approx(size / 16e9) and found.unread == ()
    assert found.exposed == 0 and found.seconds == pytest.approx(48 * 3e-3 + size / 16e9)
    slow = predict.predict(module("host.hlo"), dataclasses.replace(V5E, host=chips.Host(1.6e9)))
    assert slow.parts[predict.HOST].seconds == pytest.approx(2 * size / 1.6e9 - 24 * 3e-3)
    assert slow.collectives["to the host"].hidden_bytes == pytest.approx(24 * 3e-3 * 1.6e9)


def test_copies_to_the_host_that_are_not_asynchronous_are_not_hidden():
    text = Path(__file__).with_name("host.hlo").read_text()
    start = next(line for line in text.splitlines() if line.startswith("  %in-start"))
    now = start.replace(start[: start.index("dynamic-slice-start")], "  %in-done = bf16[1,8192,2048]{2,1,0} ")
    kept = [line for line in text.replace(start, now).splitlines() if "dynamic-slice-done" not in line]
    found = predict.predict(hlo.parse("\n".join(kept).replace("dynamic-slice-start", "dynamic-slice")), V5E)
    assert (found.seconds, found.unread) == (predict.predict(module("host.hlo"), V5E).seconds, ())


def test_copies_to_the_host_are_read_in_both_spellings():
    """The compiler's own text has them as ``async-start`` of a computation that holds nothing else."""
    text, inner = Path(__file__).with_name("host.hlo").read_text(), []
    for kind in ("dynamic-update-slice", "dynamic-slice"):
        text = text.replace(f"{kind}-done(", "async-done(")
        start = next(line for line in text.splitlines() if f" {kind}-start(" in line)
        head, _, operands = start.partition(f" {kind}-start(")
        text = text.replace(start, f"{head} async-start({operands.partition(')')[0]}), calls=%alone.{kind}")
        inner.append(f"%alone.{kind} (p: s32[]) -> s32[] {{\n  ROOT %{kind}.9 = s32[] {kind}()\n}}\n\n")
    assert text.count("async-start") == text.count("async-done") == 2
    found = predict.predict(hlo.parse(text.replace("ENTRY", "".join(inner) + "ENTRY")), V5E)
    assert found == predict.predict(module("host.hlo"), V5E)


def test_a_chip_whose_way_to_the_host_is_not_published_says_so():
    found = predict.predict(module("host.hlo"), dataclasses.replace(V5E, host=None))
    assert found.seconds == pytest.approx(48 * 3e-3)
    assert predict.missing(found.unread)[0].endswith(
        "missing: how fast a v5e sends from the host, how fast a v5e sends to the host."
    )
