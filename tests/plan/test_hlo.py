"""Reading compiled programs: what is in them, how often it runs, what it costs by the stated model."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from scaling.catalog import chips
from scaling.plan import compiled, hlo, predict, traffic

V5E = chips.find("v5e")

# In the form in which the TPU's compiler prints it: a loop of 12 over a product, a copy in fast memory, an asynchronous
# gather (printed at its start and its end), a kernel whose metadata breaks the line; outside a sum and an all-reduce.
TPU = Path(__file__).with_name("step.hlo").read_text()


def test_loops_count_as_often_as_they_run():
    module = hlo.parse(TPU)
    runs = {instruction.name: times for instruction, times in module.walk()}
    assert (runs["loop"], runs["product"], runs["sum"]) == (1, 12, 1)
    assert "convolution.1" not in runs  # inside a fusion
    assert sum(instruction.cycles * times for instruction, times in module.walk()) == 12 * 1_003_000 + 90_000


def test_an_instruction_is_what_is_printed():
    module = hlo.parse(TPU)
    product = next(i for i in module.computations["body"] if i.name == "product")
    assert (product.opcode, product.operands, product.called) == (
        "fusion",
        ("x", "gather-done"),
        {"calls": ("fused_product",)},
    )
    assert product.op_name.endswith("dot_general") and product.bytes == 2 * 4096 * 8192
    assert [i.opcode for i in module.inside(product)] == ["parameter", "parameter", "convolution"]
    kernel = next(i for i in module.computations["body"] if i.opcode == "custom-call")
    assert kernel.op_name.endswith("pallas_call")  # behind the broken line


def test_what_this_machine_compiles_is_read_too():
    def chain(x):
        return jax.lax.scan(lambda x, _: (jnp.tanh(x @ x), None), x, length=7)[0]

    text = jax.jit(chain).lower(jax.ShapeDtypeStruct((64, 64), jnp.float32)).compile().as_text()
    module = hlo.parse(text)
    (loop,) = [i for i, _ in module.walk() if i.opcode == "while"]
    assert module.trips(loop) == 7
    assert {times for i, times in module.walk() if i.op_name.endswith("tanh")} == {7}


# As libtpu 0.0.52 prints a v6e step: rows of a table gathered by the sparse cores, started without operands and given
# them by an async-update of several, and a slice brought into fast memory; neither with the short name that JAX prints.
ASYNC = Path(__file__).with_name("async.hlo").read_text()


def test_what_runs_asynchronously_is_read_in_both_spellings():
    found = predict.predict(hlo.parse(ASYNC), V5E)
    rows = 256 * 512 * 2 + 256 * 4 + 256 * 512 * 2  # read, their numbers, written; not the table
    assert found.operations["forward: jvp()/gather"] == pytest.approx(rows / (0.8 * 819e9))
    assert found.cycles == 0  # the greatest integer stands for no estimate
    short = ASYNC.replace("async-start(%weights)", "slice-start(%weights)").replace(
        "async-done(%slice", "slice-done(%slice"
    )
    assert dataclasses.astuple(predict.predict(hlo.parse(short), V5E)) == dataclasses.astuple(found)
    slow = predict.predict(hlo.parse(ASYNC), dataclasses.replace(V5E, hbm_bandwidth=1e6))
    assert slow.seconds * 0.8e6 == pytest.approx(rows + 8192)  # what is brought beforehand must come from memory, too
    assert found.unread == ()


def test_operands_may_name_a_part_of_a_tuple():
    """Under JAX 0.12 the compiler writes ``%p#1`` where JAX itself prints a ``get-tuple-element``."""
    text = """HloModule jit_step, is_scheduled=true

ENTRY %main (p: (s32[], (f32[2], bf16[4,8]), bf16[16,8])) -> bf16[16,8] {
  %p = (s32[]{:T(128)}, (f32[2]{0}, bf16[4,8]{1,0:T(8,128)S(5)}), /*index=2*/bf16[16,8]{1,0:T(8,128)(2,1)}) parameter(0)
  ROOT %copy.1 = bf16[16,8]{0,1} copy(%p#2)
}
"""
    read = hlo.parse(text)
    assert read.shapes["p#2"] == "bf16[16,8]{1,0:T(8,128)(2,1)}"
    (_, copied) = read.computations["main"]
    assert traffic.bytes_moved(read, copied) == 2 * 16 * 8 * 2


@pytest.mark.parametrize(
    ("before", "after", "named"),
    [
        ("slice-start = ((", "slice-start <- ((", "the line"),
        ("async-start(%weights), calls=%async_slice", "fusion-start(%weights), calls=%async_slice", "fusion-start"),
        ("called_computations={%called_rows}", "called_computations={%elsewhere}", "elsewhere"),
        (
            "async-start(%weights), calls=%async_slice",
            "while(%weights), body=%async_slice, condition=%async_slice",
            "once",
        ),
    ],
)
def test_what_is_not_known_is_named_and_ends_nothing(before, after, named):
    assert before in ASYNC
    found = predict.predict(hlo.parse(ASYNC.replace(before, after)), V5E)
    assert named in " ".join(found.unread) and named in " ".join(predict.missing(found.unread))


def test_a_program_that_jax_cannot_print_is_read_from_the_compilers_own_file(monkeypatch):
    """jaxlib refuses to convert an async-update of several operands."""

    class Lowered:
        def compile(self, compiler_options):
            folder = Path(compiler_options["xla_dump_to"])
            for name, text in ("1.jit_step.after_codegen.txt", ASYNC), ("0.other.after_codegen.txt", "HloModule small"):
                (folder / name).write_text(text)
            return self

        def as_text(self):
            raise jax.errors.JaxRuntimeError("INTERNAL: async-update instruction should have 1 operands but sees 3")

    assert compiled.compile_lowered(Lowered())[1] == ASYNC
    monkeypatch.setattr(Lowered, "compile", lambda self, compiler_options: self)
    with pytest.raises(ValueError, match=r"async-update .*1 operands"):
        compiled.compile_lowered(Lowered())


def test_a_text_that_is_no_program_is_refused():
    with pytest.raises(ValueError, match="ENTRY"):
        hlo.parse("HloModule nothing\n")


def test_the_step_is_the_sum_of_its_parts():
    found = predict.predict(hlo.parse(TPU), V5E)
    assert found.parts["matrix products"].seconds == pytest.approx(12 * 1e6 / 1.5e9)
    # 16 heads, 4 rows, the 10 of 16 blocks of 512 x 512 on and under the diagonal, two products: half of the peak.
    kernel = 12 * 2 * 2 * 4 * 16 * 10 * 512**2 * 128 / (0.5 * 197e12)
    assert found.parts["attention kernels"].seconds == pytest.approx(kernel)
    # The sum reads its operand from memory; the compiler's cycles are more.
    moved = (2 * 4096 * 2048 + 4 * 2048) / (0.8 * 819e9)
    assert found.parts["norms and elementwise"].seconds == pytest.approx(moved)
    sent = 4 * 2048 * 2 * 3 / 4
    assert found.collectives["all-reduce"].bytes == sent and found.collectives["all-reduce"].hidden_bytes == 0
    gathered = 12 * 2 * 2048 * 8192 * 15 / 16
    assert found.collectives["all-gather"].bytes == found.collectives["all-gather"].hidden_bytes == gathered
    assert found.collectives["all-gather"].calls == 12  # start and end are one
    assert found.exposed == pytest.approx(sent / 180e9)
    assert found.seconds == pytest.approx(sum(part.seconds for part in found.parts.values()) + found.exposed)


def test_a_hop_of_the_ring_costs_what_it_visits():
    """One branch of a conditional runs; its grid of blocks is oblong, and visited whole."""
    branch = """\
%NAME (p: bf16[8,2048,64]) -> bf16[8,2048,64] {
  %p = bf16[8,2048,64] parameter(0)
  ROOT %splash_mha_fwd_residuals = bf16[8,2048,64] custom-call(%p), custom_call_target="tpu_custom_call", \
operand_layout_constraints={s8[1,4,8]{2,1,0}, bf16[8,2048,64]{2,1,0}, bf16[8,4096,64]{2,1,0}}
}

"""
    main = """\
ENTRY %main (x: bf16[8,2048,64], c: s32[]) -> bf16[8,2048,64] {
  %x = bf16[8,2048,64] parameter(0)
  %c = s32[] parameter(1)
  ROOT %r = bf16[8,2048,64] conditional(%c, %x, %x), branch_computations={%early, %late}
}
"""
    text = branch.replace("NAME", "early") + branch.replace("NAME", "late") + main
    found = predict.predict(hlo.parse(text), V5E).parts["attention kernels"].seconds
    assert found == pytest.approx(2 * 2 * 8 * 2048 * 4096 * 128 / (0.5 * 197e12))


@pytest.mark.parametrize(
    ("name", "products", "first"),
    [
        ("flash_forward", 2, "bf16[4,2,8,2048,64]{4,3,2,1,0}"),
        ("flash_gradients", 5, "bf16[4,2,8,2048,64]{4,3,2,1,0}"),
        ("flash_gradients", 5, "bf16[4,2048,2048]{2,1,0}"),  # 16 heads of 128 features side by side
    ],
)
def test_our_kernels_cost_the_pairs_of_blocks_that_they_are_given(name, products, first):
    text = f"""HloModule jit_step, is_scheduled=true

ENTRY %main (p: bf16[4,2,8,2048,64]) -> bf16[4,2,8,2048,64] {{
  %p = bf16[4,2,8,2048,64] parameter(0)
  ROOT %{name}_512.1 = bf16[4,2,8,2048,64] custom-call(%p), custom_call_target="tpu_custom_call", \
operand_layout_constraints={{s32[5,10]{{1,0}}, {first}, bf16[4,2,2048,64]{{3,2,1,0}}}}
}}
"""
    fused = (
        text.replace(f"ROOT %{name}", f"%{name}").replace("ENTRY %main", "%inside")
        + f"""
ENTRY %main (p: bf16[4,2,8,2048,64]) -> bf16[4,2,8,2048,64] {{
  %p = bf16[4,2,8,2048,64] parameter(0)
  ROOT %{name}_512.2 = bf16[4,2,8,2048,64] fusion(%p), kind=kCustom, calls=%inside
}}
"""
    )
    found, with_its_reads = (
        predict.predict(hlo.parse(t), V5E).parts["attention kernels"].seconds for t in (text, fused)
    )
    assert found == with_its_reads
    work = products * 2 * 4 * 2 * 8 * 10 * 512**2 * 128
    assert found == pytest.approx(work / (predict.KERNEL_EFFICIENCY * V5E.flops))


def test_collectives_that_outlast_the_work_are_not_hidden():
    slow = chips.Chip("slow", 197e12, 16e9, 8.19e11, 1e9, 1.5e9, ())
    found = predict.predict(hlo.parse(TPU), slow)
    assert found.seconds == pytest.approx(sum(c.bytes for c in found.collectives.values()) / 1e9)


@pytest.mark.parametrize(
    ("groups", "size"),
    [
        ("{{0,1,2,3},{4,5,6,7}}", 4),
        ("[2,8]<=[16]", 8),
        ("mesh['axis_0'=4,'axis_1'=2,'axis_2'=16] {'axis_0','axis_2'}", 64),
    ],
)
def test_groups_of_devices_in_all_their_spellings(groups, size):
    line = f"  ROOT %r = f32[8]{{0}} all-reduce(%p), replica_groups={groups}, x=1"
    text = f"ENTRY %main (p: f32[8]) -> f32[8] {{\n{line}\n}}"
    ((instruction, _),) = hlo.parse(text).walk()
    assert predict.group_size(instruction) == size


def test_slices_and_updates_of_stacks_move_only_what_they_touch():
    text = """\
%layer (s: bf16[24,64,256], i: s32[]) -> bf16[64,256] {
  %s = bf16[24,64,256]{2,1,0} parameter(0)
  %i = s32[] parameter(1)
  %one = bf16[1,64,256]{2,1,0} dynamic-slice(%s, %i), dynamic_slice_sizes={1,64,256}
  ROOT %flat = bf16[64,256]{1,0} bitcast(%one)
}

%keep (t: bf16[24,64,256], u: bf16[64,256], j: s32[]) -> bf16[24,64,256] {
  %t = bf16[24,64,256]{2,1,0} parameter(0)
  %u = bf16[64,256]{1,0} parameter(1)
  %j = s32[] parameter(2)
  %new = bf16[1,64,256]{2,1,0} bitcast(%u)
  ROOT %updated = bf16[24,64,256]{2,1,0} dynamic-update-slice(%t, %new, %j)
}

ENTRY %main (w: bf16[24,64,256], n: s32[]) -> bf16[24,64,256] {
  %w = bf16[24,64,256]{2,1,0} parameter(0)
  %n = s32[] parameter(1)
  %read = bf16[64,256]{1,0} fusion(%w, %n), kind=kLoop, calls=%layer
  ROOT %written = bf16[24,64,256]{2,1,0} fusion(%w, %read, %n), kind=kLoop, calls=%keep
}
"""
    found = predict.predict(hlo.parse(text), V5E)
    layer = 2 * 64 * 256
    moved = (layer + 4 + layer) + (layer + 4 + layer)  # slice, index, result; update, index, what is written
    assert sum(part.seconds for part in found.parts.values()) == pytest.approx(moved / (0.8 * 819e9))
