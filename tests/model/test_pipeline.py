"""Stages of layers on virtual devices: the same numbers as without, and where layers lie and what crosses stages."""

import dataclasses
import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scaling import cli
from scaling.config import schema as cfg
from scaling.config.resolve import resolve
from scaling.model import decoder, kernels
from scaling.model.attend import Softmax, attend
from scaling.model.context import AttentionContext
from scaling.model.pipeline import pipelined
from scaling.objectives.next_token import next_token
from scaling.parallel.mesh import make_mesh
from scaling.parallel.sharding import batch_sharding
from scaling.plan import compiled, hlo
from scaling.train import state as train_state
from scaling.train.step import make_eval_step, make_train_step
from tests import tiny

STEPS = 4
LAYERS = 8
SMOKE = Path(__file__).parents[2] / "experiments/cpu/smoke.py"
END = 7  # the id that ends a document
# name: devices, mesh, parts, what recomputes
MESHES = {
    "stage2": (2, cfg.Mesh(stage=2), 2, "none"),
    "stage2-fsdp2-tensor2": (8, cfg.Mesh(stage=2, fsdp=2, tensor=2), 4, "full"),
    "stage4-fsdp2": (8, cfg.Mesh(stage=4, fsdp=2), 8, "projections"),
    "slices2-stage2-data2-fsdp2": (8, cfg.Mesh(slices=2, stage=2, data=2, fsdp=2), 2, "dots"),
    "slices2-stage4-tensor2": (8, cfg.Mesh(slices=2, stage=4, tensor=2), 4, "full"),
}
VARIANTS = {
    "post": dict(norm="post", dropout_residual=0.0, tied_embedding=False),
    "completep": dict(parametrization="completep", base_width=16),
}


def config(parts=0, mesh=None, model=None, **train):
    """16 sequences of 16 tokens in each of two microbatches; documents that end."""
    changes = dict(num_layers=LAYERS, document_mask=True) | (model or {})
    train = dict(batch_tokens=512, microbatch_sequences=16, pipeline_microbatches=parts) | train
    made = tiny.config(changes, **train)
    # A larger epsilon than training's: where a gradient vanishes, Adam would divide one mesh's rounding by another's.
    optimizer = dataclasses.replace(made.optimizer, epsilon=1e-5)
    return dataclasses.replace(made, mesh=mesh or cfg.Mesh(), optimizer=optimizer)


def curve(config, devices=1):
    """[(loss, norm of the gradients)] of the first steps, and the final state."""
    mesh = make_mesh(config.mesh, jax.devices()[:devices])
    count = config.train.batch_tokens // config.train.microbatch_sequences // 16
    found = []
    with jax.set_mesh(mesh):
        state = train_state.create_state(config, mesh)
        step = make_train_step(config, mesh, next_token(config))
        for i in range(STEPS):
            batch = jax.device_put(
                tiny.batch(i, count, config.train.microbatch_sequences, separator=END), batch_sharding(mesh)
            )
            state, metrics = step(state, batch, 1e-2, count)
            found.append((float(metrics["loss"]), float(metrics["grad_norm"])))
    return found, state


@pytest.fixture(scope="module")
def one_device():
    return curve(config())


@pytest.mark.slow
@pytest.mark.parametrize("name", MESHES)
def test_losses_gradients_and_weights_are_those_of_one_device(name, one_device):
    devices, mesh, parts, remat = MESHES[name]
    found, state = curve(config(parts, mesh, dict(remat=remat)), devices)
    want, want_state = one_device
    np.testing.assert_allclose(found, want, rtol=1e-5)
    for got, expected in zip(jax.tree.leaves(state["params"]), jax.tree.leaves(want_state["params"]), strict=True):
        np.testing.assert_allclose(got, expected, atol=2e-3)  # Adam divides rounding by rounding where gradients vanish


@pytest.mark.slow
@pytest.mark.parametrize("name", VARIANTS)
def test_other_models_run_through_stages_too(name):
    alone, _ = curve(config(model=VARIANTS[name]))
    staged, _ = curve(config(8, cfg.Mesh(stage=4, fsdp=2), VARIANTS[name]), 8)
    np.testing.assert_allclose(staged, alone, rtol=1e-5)


@pytest.mark.slow
def test_dropout_depends_on_the_parts_and_not_on_the_mesh(one_device):
    model = dict(dropout_residual=0.2, dropout_attention=0.2, dropout_embedding=0.1)
    two, _ = curve(config(4, cfg.Mesh(stage=2), model), 2)
    eight, _ = curve(config(4, cfg.Mesh(stage=2, fsdp=2, tensor=2), model), 8)
    np.testing.assert_allclose(eight, two, rtol=1e-5)
    assert np.abs(np.subtract(two, one_device[0])).max() > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize(("stages", "parts"), [(2, 2), pytest.param(2, 8, marks=pytest.mark.slow), (4, 8)])
def test_each_part_meets_each_layer_once_in_order(stages, parts):
    """On a toy layer, whose gradient where rows are alike is NaN: neither bubbles nor neighbours show in results."""
    rows, length, width = 16, 4, 8
    mesh = cfg.Mesh(stage=stages, fsdp=2)
    keys = jax.random.split(jax.random.key(0), LAYERS)
    layers = jax.random.normal(jax.random.key(1), (LAYERS, width, width))
    x = jax.random.normal(jax.random.key(2), (rows, length, width))
    segments = jax.random.randint(jax.random.key(3), (rows, length), 0, 3)

    def layer(x, inputs, segments):
        w, key = inputs
        x = x / jnp.linalg.norm(x, axis=-1, keepdims=True)  # no gradient at 0
        noise = jax.random.uniform(key, x.shape)
        return jnp.tanh(x @ w) * (1 + segments[..., None]) + noise

    def stage(layers, x, segments):
        return jax.lax.scan(lambda x, i: (layer(x, i, segments), None), x, layers)[0]

    def expected(layers, x):
        # A stage holds rows in order and deals them out in turn.
        each = parts // stages
        order = np.arange(rows).reshape(stages, -1, each).swapaxes(1, 2).reshape(parts, -1)
        out = jnp.zeros_like(x)
        for part, chosen in enumerate(order):
            mine = jax.vmap(jax.random.fold_in, (0, None))(keys, part)
            out = out.at[chosen].set(stage((layers, mine), x[chosen], segments[chosen]))
        return out

    def with_gradients(run):
        def objective(layers, x):
            out = run(layers, x)
            return jnp.sum(jnp.sin(jnp.arange(x.size).reshape(x.shape)) * out), out

        (_, out), grads = jax.jit(jax.value_and_grad(objective, (0, 1), has_aux=True))(layers, x)
        return out, *grads

    want = with_gradients(expected)
    for recompute in (False, True):
        with jax.set_mesh(make_mesh(mesh, jax.devices()[: 2 * stages])):
            found = with_gradients(
                lambda layers, x, again=recompute: pipelined(stage, (layers, keys), x, segments, parts, again)
            )
        for mine, other in zip(found, want, strict=True):
            np.testing.assert_allclose(mine, other, atol=2e-5 * float(jnp.abs(other).max()))


@pytest.mark.slow
def test_flash_attention_inside_stages_is_the_reference():
    q, k, v = jax.random.normal(jax.random.key(0), (3, 2, 2, 2, 128, 32))  # [S, B, H, T, K]
    run = jax.vmap(
        lambda q, k, v: kernels.flash_attention(q, k, v, AttentionContext(), 0.3, 128),
        spmd_axis_name="stage",
    )
    with jax.set_mesh(make_mesh(cfg.Mesh(stage=2, fsdp=2, tensor=2))):
        found = jax.jit(run)(q, k, v)
    for stage in range(2):
        with jax.set_mesh(make_mesh(cfg.Mesh(), jax.devices()[:1])):
            want = attend(q[stage], k[stage], v[stage], AttentionContext(), Softmax(0.3))
        np.testing.assert_allclose(found[stage], want, atol=2e-5)


def test_every_device_holds_its_stages_layers_only():
    """Parameters and moments; what is outside of the stack is whole in every stage."""
    mesh = make_mesh(cfg.Mesh(stage=4, fsdp=2))
    state = train_state.create_state(config(8, cfg.Mesh(stage=4, fsdp=2)), mesh)
    moments = state["optimizer"][2]
    for tree in (state["params"], moments.mu, moments.nu):
        leaves = jax.tree.leaves(tree[decoder.STACK])
        assert len(leaves) == 16
        for leaf in leaves:
            held = {s.device.id: (s.index[0].start, s.index[0].stop) for s in leaf.addressable_shards}
            assert held == {i: (2 * (i // 2), 2 * (i // 2) + 2) for i in range(8)}
            assert {s.data.shape[0] for s in leaf.addressable_shards} == {2}
        assert {s.data.shape for s in tree["tokens"].addressable_shards} == {(56, 16)}


@pytest.fixture(scope="module")
def program():
    mesh = cfg.Mesh(data=1, stage=2, fsdp=2, tensor=2)
    return compiled.compile_step(config(4, mesh, dict(remat="full"), batch_tokens=256), jax.devices())


@pytest.mark.slow
def test_only_rows_go_from_stage_to_stage(program):
    """Of the layers nothing does: their collectives stay among the devices of a stage, 0-3 and 4-7."""
    crossing, inside = [], []
    for instruction, _ in hlo.parse(program.text).walk():
        kind = re.match(r"(all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute)", instruction.opcode)
        if kind:
            groups = members(instruction.text)
            assert groups, instruction.text
            crosses = any({device // 4 for device in group} == {0, 1} for group in groups)
            (crossing if crosses else inside).append((kind[1], groups, instruction))
    assert {kind for kind, _, _ in crossing} == {"collective-permute", "all-reduce"}
    for kind, groups, instruction in crossing:
        if kind == "collective-permute":  # a part, to the same place in the other stage
            assert all(abs(a - b) == 4 for a, b in groups) and instruction.shape.startswith(PARTS)
        else:  # gradients of the embeddings, and scalars
            assert not re.search("vmap|checkpoint", instruction.op_name), instruction.op_name
    assert sum(kind == "collective-permute" for kind, _, _ in crossing) >= 4  # both buffers, both directions
    assert any(kind == "all-gather" and "vmap" in i.op_name for kind, _, i in inside)  # fsdp, layer by layer


PARTS = ("f32[1,2,8,32]", "s32[1,2,16]")  # 4 rows over fsdp=2, 16 tokens over tensor=2; their segments


def members(text):
    """Groups of devices of a collective; pairs of a permutation."""
    if found := re.search(r"source_target_pairs=\{(.*?\})\}", text):
        return [numbers(pair) for pair in re.findall(r"\{([\d,]+)\}", found[1])]
    if found := re.search(r"replica_groups=\{(\{.*?\})\}", text):
        return [numbers(group) for group in re.findall(r"\{([\d,]+)\}", found[1])]
    if found := re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", text):
        shape, dims, order = (numbers(part) if part else None for part in found.groups())
        return np.arange(np.prod(dims)).reshape(dims).transpose(order).reshape(shape).tolist()
    if found := re.search(
        r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(\[([\d,]+)\]T\(([\d,]+)\)\))? \{([^}]*)\}", text
    ):
        axes, dims, order, chosen = found.groups()
        sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", axes)}
        devices = np.arange(np.prod(list(sizes.values())))
        if dims:
            devices = devices.reshape(numbers(dims)).transpose(numbers(order))
        places = [list(sizes).index(name) for name in re.findall(r"'(\w+)'", chosen)]
        grid = np.moveaxis(devices.reshape(list(sizes.values())), places, range(-len(places), 0))
        return grid.reshape(-1, np.prod(grid.shape[-len(places) :])).tolist()
    return []


def numbers(text):
    return [int(number) for number in text.split(",")]


@pytest.mark.slow
def test_validation_loss_is_that_of_one_device():
    sums = []
    for parts, sizes, devices in ((0, cfg.Mesh(), 1), (4, cfg.Mesh(stage=2, fsdp=2, tensor=2), 8)):
        mesh = make_mesh(sizes, jax.devices()[:devices])
        with jax.set_mesh(mesh):
            params = train_state.create_state(config(), mesh)["params"]
            batch = jax.device_put(tiny.batch(0, 2, 16, separator=END), batch_sharding(mesh))
            sums.append(make_eval_step(config(parts, sizes), mesh, next_token(config(parts, sizes)))(params, batch))
    for got, want in zip(jax.tree.leaves(sums[1]), jax.tree.leaves(sums[0]), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5)


@pytest.mark.slow
def test_a_run_without_stages_goes_on_with_them(tmp_path):
    """From the command line, with validation: the same curve as without."""

    def train(name, *overrides):
        given = (
            "--config.sample.prompts=() --config.log.tensorboard=false --config.model.num_layers=4 "
            "--config.optimizer.schedule=constant --config.optimizer.peak_lr=1e-3"  # at 1e-2 rounding grows: a spike
        )
        return cli.main(
            ["train", f"--config={SMOKE}", f"--config.workdir={tmp_path / name}", *given.split(), *overrides]
        )

    def losses_of(name):
        return [
            [json.loads(line)["loss"] for line in (tmp_path / name / file).read_text().splitlines()]
            for file in ("metrics.jsonl", "evals.jsonl")
        ]

    assert train("whole", "--config.mesh.fsdp=8") == 0
    assert train("parts", "--config.mesh.fsdp=8", "--config.train.tokens=4096") == 0
    half = len(losses_of("parts")[0])
    assert train("parts", "--config.mesh.stage=2", "--config.mesh.fsdp=2", "--config.mesh.tensor=2") == 0
    (losses, evals), (want, want_evals) = losses_of("parts"), losses_of("whole")
    assert 0 < half < len(losses) == len(want)
    np.testing.assert_allclose(losses, want, rtol=1e-5)
    np.testing.assert_allclose(evals[-1], want_evals[-1], rtol=1e-5)
    mesh = json.loads((tmp_path / "parts/config.json").read_text())["mesh"]
    assert mesh == {"stage": 2, "data": 1, "fsdp": 2, "expert": 1, "context": 1, "tensor": 2}


@pytest.mark.parametrize(
    ("mesh", "data", "first"),
    [
        (cfg.Mesh(stage=2, fsdp=2), 2, [[0, 1], [2, 3]]),
        (cfg.Mesh(slices=2, stage=2, fsdp=2), 2, [[0, 1], [2, 3]]),  # a slice is a stage
        (cfg.Mesh(slices=2, stage=4), 2, [[0], [1]]),  # a slice has two stages
        (cfg.Mesh(slices=4, stage=2, fsdp=2), 2, [[0, 1], [2, 3]]),  # a stage has two slices, for data
    ],
)
def test_stages_take_the_slices_first(mesh, data, first):
    grid = make_mesh(mesh)
    assert grid.shape == {"stage": mesh.stage, "data": data, "fsdp": mesh.fsdp, "expert": 1, "context": 1, "tensor": 1}
    np.testing.assert_array_equal([[d.id for d in row] for row in grid.devices[0, :, :, 0, 0, 0]], first)


REFUSED = {
    "layers": (
        dict(mesh=cfg.Mesh(stage=3), devices=3, batch_tokens=768, microbatch_sequences=24),
        "config.mesh.stage=3 .*4 .*config.model.attention_pattern .*config.model.num_layers=8, .*2 or 4",
    ),
    "pattern": (dict(mesh=cfg.Mesh(stage=8)), "config.mesh.stage=8 .*4 repetitions"),
    "slices": (
        dict(mesh=cfg.Mesh(stage=2, slices=3)),
        "config.mesh.stage=2 .*config.mesh.slices=3.* divide",
    ),
    "no stages": (
        dict(parts=4),
        "config.train.pipeline_microbatches=4 .*config.mesh.stage > 1.* 0",
    ),
    "parts": (
        dict(mesh=cfg.Mesh(stage=2), parts=3),
        "config.train.pipeline_microbatches=3 .*config.mesh.stage=2, .*2 or 4",
    ),
    "rows": (
        dict(mesh=cfg.Mesh(stage=2, fsdp=4), parts=8),
        "config.train.microbatch_sequences=16 .*8 .*config.train.pipeline_microbatches.* 4 shards .*32",
    ),
    "devices": (
        dict(mesh=cfg.Mesh(stage=2, slices=4, fsdp=4)),
        "stage=2 .*slices/stage=2 .*fsdp=4 .*16 devices .*8 devices",
    ),
    "tasks": (
        dict(mesh=cfg.Mesh(stage=2), eval=cfg.Eval(tasks="copa")),
        "config.eval.tasks='copa' .*empty with config.mesh.stage=2.* scaling evaluate",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_impossible_pipelines_are_refused(name):
    values, words = REFUSED[name]
    values = dict(values)
    evaluation = values.pop("eval", cfg.Eval())
    devices = values.pop("devices", 8)
    with pytest.raises(ValueError, match=words):
        resolve(dataclasses.replace(config(**values), eval=evaluation), device_count=devices)


def test_the_number_of_parts_is_four_a_stage_or_the_most_that_divide():
    def parts(sequences, **mesh):
        found = resolve(
            config(mesh=cfg.Mesh(**mesh), microbatch_sequences=sequences, batch_tokens=16 * sequences), device_count=8
        )
        return found.train.pipeline_microbatches

    assert parts(64, stage=2) == 8  # 16 rows a shard
    assert parts(16, stage=2) == 4
    assert parts(24, stage=2) == 6
    assert parts(64, stage=4) == 16
    assert parts(16, stage=1) == 0


def test_without_a_pipeline_a_mesh_with_stages_is_refused():
    params = decoder.initialize(tiny.model(), jax.random.key(0))
    with (
        jax.set_mesh(make_mesh(cfg.Mesh(stage=2))),
        pytest.raises(ValueError, match="2 stages"),
    ):
        decoder.merge(tiny.network(), params)(np.zeros((8, 16), np.int32))
