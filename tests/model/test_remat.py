"""``compute.remat``: what a policy keeps is not computed again, and no policy changes a number."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scaling.config import remat
from scaling.config import schema as cfg
from scaling.model import decoder, stack
from scaling.model.context import AttentionContext
from tests import tiny

pytestmark = pytest.mark.usefixtures("on_one_device")
TOKENS = np.random.default_rng(1).integers(1, tiny.VOCAB, (2, 16), np.int32)
DEEP = dict(num_layers=4, dropout_residual=0.1)
CASES = {
    "alternating": DEEP,
    "experts": DEEP | tiny.SWITCHES["glam"],
    "shared": dict(causal=False, layer_groups=1, attention_pattern=("dense",)),
    "post": DEEP | dict(norm="post", attention_pattern=("dense",)),
    "two stacks": dict(encoder_layers=2, attention_pattern=("dense",)),
}


@functools.cache
def params(case):
    return decoder.initialize(tiny.model(**CASES[case]), jax.random.key(0))


def step(case, policy):
    """Loss and gradients of a tiny model, not compiled yet."""
    network = tiny.network(remat=policy, **CASES[case])

    def loss(params):
        model = decoder.merge(network, params)
        source = model.encode(TOKENS[:, :12]) if network.model.encoder_layers else None
        context = AttentionContext(source=source)
        return jnp.square(model(TOKENS, context, key=jax.random.key(3))).sum()

    return jax.jit(jax.value_and_grad(loss))


def products(case, policy):
    """Products in the program, once for each loop."""
    return step(case, policy).lower(params(case)).as_text().count("dot_general")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "policies"),
    [
        ("alternating", ("full", "sum+hidden:2")),
        ("experts", ("hidden:2",)),
        ("shared", ("attention+sum",)),
        ("two stacks", ("qkv",)),
    ],
)
def test_no_policy_changes_a_number(case, policies):
    """Losses are equal to the bit. XLA's CPU compiler fuses some sums of gradients in another order."""
    loss, gradients = step(case, "none")(params(case))
    for policy in policies:
        again, rematted = step(case, policy)(params(case))
        assert again == loss, policy
        leaves = [jax.tree.leaves(tree) for tree in (gradients, rematted)]
        largest = max(np.abs(leaf).max() for leaf in leaves[0])
        for a, b in zip(*leaves, strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-6 * largest, err_msg=policy)


@pytest.mark.slow
def test_each_kind_spares_its_products():
    """Of the products that ``full`` computes twice; a loop of the program stands for all of its layers."""
    full = products("post", "full")
    spared = {kind: full - products("post", kind) for kind in remat.KINDS}
    assert spared == {"qkv": 3, "attention": 1, "sum": 1 + 1, "hidden": 1}  # with both sums of a post-norm block
    assert full - products("post", "projections") == sum(spared.values())
    assert products("post", "projections") - products("post", "none") == 1  # the scores, without a kernel


@pytest.mark.slow
def test_first_layers_make_a_second_loop_and_the_ends_none():
    texts = {name: step("post", name).lower(params("post")).as_text() for name in ("full", "projections")}
    assert step("post", "projections:4").lower(params("post")).as_text() == texts["projections"]
    assert step("post", "projections:0").lower(params("post")).as_text() == texts["full"]
    loops = step("post", "projections:3").lower(params("post")).as_text().count("stablehlo.while")
    assert loops == 2 + texts["full"].count("stablehlo.while")  # forward and backward


@pytest.mark.slow
def test_what_lies_in_the_memory_of_the_host(monkeypatch):
    plain, other = (jax.make_jaxpr(step("post", name))(params("post")) for name in ("hidden", "qkv@host+hidden"))
    assert str(other) == str(jax.make_jaxpr(step("post", "qkv+hidden"))(params("post")))  # on a CPU
    monkeypatch.setattr(stack, "platform", lambda: "tpu")
    text = str(jax.make_jaxpr(step("post", "qkv@host+hidden"))(params("post")))
    assert "Host" not in str(plain) and text.count("Host") >= 3  # queries, keys and values go there
    text = step("post", "qkv@host+hidden").lower(params("post")).as_text()
    assert text.count("dot_general") == products("post", "qkv+hidden")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("full", "full"),
        ("qkv", "qkv"),
        ("hidden+qkv", "qkv+hidden"),
        ("hidden+sum+attention+qkv", "projections"),
        ("projections:3", "projections:3"),
        ("sum:0", "full"),
        ("projections@host", "projections@host"),
        ("hidden+sum@host:4", "sum@host+hidden:4"),
        ("qkv@host+attention@host+sum@host+hidden@host", "projections@host"),
    ],
)
def test_policies_are_read_and_written(text, found):
    kept = remat.parse(text)
    assert str(kept) == found and str(remat.parse(found)) == found


@pytest.mark.parametrize(
    ("text", "here"),
    [
        ("hidden", ["hidden", "norms"]),
        ("attention+sum", ["attention", "sum", "softmax", "norms"]),
        ("qkv@host+attention@host+hidden", ["hidden", "softmax", "norms"]),
    ],
)
def test_the_sums_of_the_softmax_stay_where_they_are_made(text, here):
    assert remat.parse(text).here == here


def test_policies_that_mean_no_kinds_and_texts_that_mean_nothing():
    assert remat.parse("none") is remat.parse("dots") is remat.parse("auto") is None
    for text in (
        "",
        "all",
        "qkv+",
        "qkv+qkv",
        "projections+qkv",
        "full:2",
        "none:1",
        "qkv:",
        "qkv:-1",
        "qkv:1.5",
        "qkv@disk",
        "@host",
        "full@host",
        "qkv@host@host",
        "qkv+qkv@host",
    ):
        with pytest.raises(ValueError, match=r"config\.compute\.remat=.* must be one of none, dots"):
            remat.parse(text)


def test_what_all_layers_keep_on_the_device():
    keeping = ("none", "auto", "projections", "qkv", "qkv+hidden@host")
    assert all(remat.all_keep(text, "qkv") for text in keeping)
    assert not any(remat.all_keep(text, "qkv") for text in ("full", "dots", "hidden", "qkv:2", "qkv@host+hidden"))


@pytest.mark.parametrize(
    ("changes", "mesh", "what"),
    [
        (dict(remat="sum:1"), {}, "multiple of the 2 layers of a period, as 2 would be"),
        (dict(remat="sum:4"), {}, "at most the 2 layers"),
        (dict(remat="sum:2", parallel="one_norm"), {}, "there is no sum with"),
        (CASES["shared"] | dict(remat="sum:2"), {}, r"layer_groups=1: layers that share weights"),
        (CASES["two stacks"] | dict(remat="sum:2"), {}, r"encoder_layers=2"),
        (dict(remat="sum:2"), dict(slices=2, stage=2), r"stage=2: a stage of a pipeline"),
        (dict(remat="sum@host+qkv"), dict(slices=2, stage=2), r"must not name @host with config\.mesh\.stage=2"),
    ],
)
def test_first_layers_are_refused_where_a_stack_cannot_be_parted(changes, mesh, what):
    config = tiny.config(changes)
    with pytest.raises(ValueError, match=rf"config\.compute\.remat='.*sum.*'.*{what}"):
        remat.check(dataclasses.replace(config, mesh=cfg.Mesh(**mesh)))
