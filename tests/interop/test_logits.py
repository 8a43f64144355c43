import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scaling.config import schema as cfg
from scaling.interop import huggingface
from scaling.interop import logits as logits_module
from scaling.interop.logits import compute, logits
from scaling.model import decoder
from scaling.parallel.mesh import make_mesh, one_device
from scaling.runs.checkpoint import Checkpoints
from scaling.runs.model import load_run
from scaling.train import state as train_state
from tests import tiny
from tests.interop.test_huggingface import FIXTURES, assert_same_trees

IDS = np.random.default_rng(0).integers(0, tiny.VOCAB, (3, 12))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run directory as training leaves it, on 4 devices and in bfloat16; and its parameters."""
    run_dir = tmp_path_factory.mktemp("run")
    model = {"attention_pattern": ("dense",), "dtype": "bfloat16", "remat": "full"}
    config = dataclasses.replace(tiny.config(model), mesh=cfg.Mesh(data=1, fsdp=2, tensor=2))
    state = train_state.create_state(config, make_mesh(config.mesh, jax.devices()[:4]))
    (run_dir / "config.json").write_text(json.dumps({"config": cfg.to_dict(config)}))
    checkpoints = Checkpoints(run_dir)
    checkpoints.save(1, jax.tree.map(jnp.zeros_like, state), {"config": cfg.to_dict(config), "tokens": 0})
    checkpoints.save(2, state, {"config": cfg.to_dict(config), "tokens": 0})
    checkpoints.close()
    return run_dir, config.network, jax.device_get(state["params"])


def test_a_run_directory_in_float32(run):
    run_dir, network, params = run
    loaded, same = load_run(run_dir)
    assert loaded == network
    assert_same_trees(jax.device_get(same), params)
    assert {d for leaf in jax.tree.leaves(same) for d in leaf.devices()} == {jax.devices()[0]}

    def expected(network):
        model = decoder.merge(network, params)
        with jax.set_mesh(one_device()):
            return model.logits(model(jnp.asarray(IDS)))

    result = logits(str(run_dir), IDS)
    assert result.shape == (3, 12, tiny.VOCAB)
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, expected(tiny.in_float32(network.model)), atol=1e-6)
    assert np.abs(result - expected(network)).max() > 1e-4


def test_rows_are_computed_in_parts(run, monkeypatch):
    _, network, params = run
    whole = compute(network, params, IDS)
    monkeypatch.setattr(logits_module, "_FLOATS_AT_ONCE", 2 * 12 * network.model.d_ff)  # two rows, then one and padding
    np.testing.assert_allclose(compute(network, params, IDS), whole, atol=1e-6)


def test_one_dimension_is_one_row(run):
    run_dir, network, params = run
    np.testing.assert_allclose(logits(run_dir, IDS[0].astype(np.uint16)), compute(network, params, IDS[:1]), atol=1e-6)


def test_export_of_a_run(run, tmp_path):
    run_dir, network, params = run
    huggingface.export(run_dir, tmp_path / "out")
    np.testing.assert_allclose(logits(tmp_path / "out", IDS), compute(network, params, IDS), atol=1e-6)


@pytest.mark.parametrize(("output", "named"), [("file/out", "/file'"), ("full", "/full")])
def test_export_to_where_it_cannot_be_written_reads_no_checkpoint(run, tmp_path, monkeypatch, output, named):
    monkeypatch.setattr(huggingface, "open_run", lambda _: pytest.fail("the checkpoint was read"))
    (tmp_path / "file").write_text("")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a").write_text("")
    with pytest.raises(OSError, match=named):
        huggingface.export(run[0], tmp_path / output)


@pytest.mark.parametrize(
    ("ids", "words"),
    [
        (np.zeros((1, 4)), ["integers", "float64"]),
        (np.zeros((1, 4), bool), ["integers", "bool"]),
        (np.zeros((1, 2, 3), int), ["[1, 2, 3]"]),
        (np.zeros((2, 0), int), ["at least one token"]),
        (np.zeros((1, 33), int), ["33", "32 positions"]),
        (np.asarray([[0, 1], [100, 101]]), ["ids[1, 1] is 101", "101 tokens", "0 to 100"]),
        (np.asarray([5, -1]), ["ids[0, 1] is -1"]),
        (np.asarray([2**40]), [str(2**40)]),
    ],
)
def test_wrong_ids_are_refused(ids, words):
    with pytest.raises(ValueError) as caught:
        logits(FIXTURES / "gpt2", ids)
    for word in words:
        assert word in str(caught.value)


def test_what_is_no_model_is_refused(tmp_path, run):
    with pytest.raises(FileNotFoundError, match=r"nowhere .*config\.json"):
        logits(tmp_path / "nowhere", IDS)
    path = tmp_path / "config.json"
    path.write_text("{}")
    with pytest.raises(ValueError, match="'config'"):
        logits(tmp_path, IDS)
    with pytest.raises(ValueError, match="scaling train"):
        huggingface.export(tmp_path, tmp_path / "out")
    path.write_text((run[0] / "config.json").read_text())
    with pytest.raises(ValueError, match="no checkpoint"):
        logits(tmp_path, IDS)
