import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scaling.config import schema as cfg
from scaling.model import decoder
from scaling.model.parametrization import parametrization
from scaling.objectives.next_token import next_token
from scaling.parallel.mesh import make_mesh
from scaling.train import state as train_state
from scaling.train.optimizer import make_optimizer
from scaling.train.step import make_train_step
from tests import tiny


def update(optimizer, model=None, gradient=1.0):
    model = model or tiny.model()
    transform = make_optimizer(optimizer, model)

    @jax.jit  # one program, instead of one for each operation and shape
    def run():
        params = jax.tree.map(lambda s: jnp.full(s.shape, 2.0), decoder.abstract(model))
        return transform.update(
            jax.tree.map(lambda p: jnp.full_like(p, gradient), params), transform.init(params), params
        )

    return run()[0]


def test_decay_spares_biases_and_norms_unless_told():
    optimizer = cfg.Optimizer(weight_decay=0.5, clip_norm=0.0)
    block = update(optimizer)["blocks"]
    np.testing.assert_allclose(block["mlp"]["up"], -(1 + 0.5 * 2), rtol=1e-5)
    np.testing.assert_allclose(block["mlp"]["up_bias"], -1, rtol=1e-5)
    np.testing.assert_allclose(block["mlp_norm"]["gain"], -1, rtol=1e-5)
    every = update(dataclasses.replace(optimizer, decay_biases_and_norms=True))["blocks"]
    np.testing.assert_allclose(every["mlp_norm"]["gain"], -2, rtol=1e-5)


def test_clipping_is_by_the_global_norm():
    def moment(clip):
        optimizer = cfg.Optimizer(weight_decay=0.0, clip_norm=clip, epsilon=1.0, beta1=0.0, beta2=0.0)
        return np.asarray(update(optimizer, gradient=10.0)["final_norm"]["gain"])

    count = sum(s.size for s in jax.tree.leaves(decoder.abstract(tiny.model())))
    clipped = 1.0 / np.sqrt(count)  # each of `count` equal gradients after clipping to norm 1
    np.testing.assert_allclose(moment(1.0), -clipped / (clipped + 1), rtol=1e-4)
    np.testing.assert_allclose(moment(0.0), -10 / 11, rtol=1e-5)


@pytest.mark.slow
def test_mup_scales_init_learning_rate_decay_and_epsilon_together():
    base = tiny.model(parametrization="mup", base_width=32)
    wide = tiny.model(parametrization="mup", base_width=32, d_model=128, num_heads=16, d_ff=512)
    assert parametrization(base) == dataclasses.replace(
        parametrization(tiny.model()), attention_scale=parametrization(base).attention_scale
    )
    scales = parametrization(wide)
    assert scales.hidden_std == pytest.approx(0.02 / 2) and scales.logit_multiplier == 0.25
    optimizer = cfg.Optimizer(weight_decay=0.5, clip_norm=0.0)
    updates = update(optimizer, wide)
    np.testing.assert_allclose(updates["blocks"]["mlp"]["up"], -(0.25 + 0.5 * 2), rtol=1e-5)
    np.testing.assert_allclose(updates["tokens"], -(1 + 0.5 * 2), rtol=1e-5)
    # Adam's epsilon shrinks with width where gradients do: at gradient = epsilon / m_N the update is half.
    tiny_gradient = update(dataclasses.replace(optimizer, weight_decay=0.0, epsilon=1e-2), wide, gradient=1e-2 / 4)
    np.testing.assert_allclose(tiny_gradient["blocks"]["mlp"]["up"], -0.25 * 0.5, rtol=1e-4)


def test_completep_scales_by_depth():
    deep = tiny.model(parametrization="completep", base_width=32, base_depth=2, num_layers=8)
    scales = parametrization(deep)
    assert scales.residual_multiplier == 0.25 and scales.hidden_lr == 1.0
    assert scales.residual_std == pytest.approx(0.02 / 2)  # the base depth's 1/sqrt(2*2)


def movement(name, width, depth=2, steps=4):
    """RMS change by a few steps of (logits, residual stream of a fixed input): the coordinate check.

    arXiv 2203.03466, appendix D.1. The residual stream leaves out what the embeddings contribute.
    """
    changes = dict(
        parametrization=name,
        d_model=width,
        num_heads=width // 16,
        d_head=16,
        d_ff=4 * width,
        num_layers=depth,
        base_width=32,
        base_depth=2,
        init_std=0.1,
    )
    config = tiny.config(changes)
    mesh = make_mesh(cfg.Mesh(), jax.devices()[:1])
    batch = tiny.batch(0)
    with jax.set_mesh(mesh):
        state = train_state.create_state(config, mesh)
        fixed = jax.random.normal(jax.random.key(9), (8, 16, width))

        @jax.jit
        def look(params):
            model = decoder.merge(config.network, params)
            return model.logits(model(batch.tokens[0])), model._layers(
                (model._stacks(), None), fixed, decoder.PLAIN, None
            )[0]

        before = look(state["params"])
        step = make_train_step(config, mesh, next_token(config))
        for _ in range(steps):
            state, _ = step(state, batch, 1e-2, 1)
        after = look(state["params"])
    return [float(jnp.sqrt(jnp.square(a - b).mean())) for a, b in zip(after, before, strict=True)]


@pytest.mark.slow
def test_coordinate_check_width():
    """Logits move by the same amount at every width under muP, and ever faster under the standard rule."""
    widths = (32, 128, 512)
    standard = [movement("standard", w)[0] for w in widths]
    mup = [movement("mup", w)[0] for w in widths]
    print("standard", standard, "mup", mup)
    assert max(mup) / min(mup) < 2
    assert standard[2] / standard[0] > 4


@pytest.mark.slow
def test_coordinate_check_depth():
    """Under CompleteP the change does not grow with depth; under muP alone it does."""
    depths = (2, 8, 32)
    mup = [movement("mup", 32, d)[1] for d in depths]
    completep = [movement("completep", 32, d)[1] for d in depths]
    print("mup", mup, "completep", completep)
    assert max(completep) / min(completep) < 2
    assert mup[2] / mup[0] > 3


NAMES = {
    "adamw": (),
    "adafactor": (("min_dim_size_to_factor", 8),),
    "lion": (("b1", 0.95),),
    "muon": (("ns_steps", 3),),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_optimizers_of_optax_by_name_lie_sharded_and_give_the_same_on_every_mesh(name):
    config = dataclasses.replace(tiny.config(), optimizer=cfg.Optimizer(name=name, arguments=NAMES[name]))
    alone, _ = tiny.train(config, 4, lr=1e-3)
    together, state = tiny.train(config, 4, cfg.Mesh(fsdp=4, tensor=2), 8, lr=1e-3)
    np.testing.assert_allclose(together, alone, rtol=1e-5)
    large = [leaf for leaf in jax.tree.leaves(state["optimizer"]) if leaf.size >= 32 * 32]
    # Eight large parameters; Muon keeps one moment of the six matrices and two of the tables, Adafactor only factors.
    assert len(large) == {"adamw": 16, "lion": 8, "muon": 10, "adafactor": 0}[name]
    for leaf in large:
        held = leaf.addressable_shards[0].data.size
        assert held <= leaf.size // 4, (leaf.shape, leaf.sharding.spec)


def test_factors_lie_as_the_dimension_that_they_kept():
    config = dataclasses.replace(tiny.config(), optimizer=cfg.Optimizer(name="adafactor", arguments=NAMES["adafactor"]))
    factored = jax.eval_shape(make_optimizer(config.optimizer, config.model).init, decoder.abstract(config.model))
    axes = train_state.state_axes(config, factored)
    names = {
        jax.tree_util.keystr(path): leaf for path, leaf in jax.tree.leaves_with_path(axes, is_leaf=train_state.is_axes)
    }
    of_up = {leaf for path, leaf in names.items() if path.endswith("['mlp']['up']")}
    assert of_up == {("layers", "embed"), ("layers", "mlp"), (None,)}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (dict(name="adamw2"), "adamw2"),
        (dict(name="lion", arguments=(("b3", 1.0),)), "'b3'.*'b1'|'b3'.*'b2'"),
        (dict(name="lion", arguments=(("learning_rate", 1.0),)), "learning_rate"),
        (dict(name="adafactor", state_dtype="bfloat16"), "state_dtype"),
        (dict(arguments=(("b1", 0.5),)), "beta1"),
    ],
)
def test_optimizers_that_cannot_be_are_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        make_optimizer(cfg.Optimizer(**changes), tiny.model())


def test_a_parametrization_without_a_rule_for_the_optimizer_is_refused():
    with pytest.raises(ValueError, match="parametrization"):
        make_optimizer(cfg.Optimizer(name="muon"), tiny.model(parametrization="mup"))
