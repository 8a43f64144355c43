"""``scaling export RUN DIR --adapters``: a folder of PEFT, compared with the whole model and with PEFT's own names."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
import safetensors.numpy

from scaling import cli, exit_codes
from scaling.interop import huggingface
from scaling.interop.import_run import import_folder
from scaling.model import decoder
from tests import tiny

FAMILIES = {"llama": "llama", "neox": "gpt_neox", "gpt2": "gpt2"}
MATRICES = {"neox": ("query", "value", "down")}  # the others: all
RANK, ALPHA = 3, 5.0
OFF = dict(vocab_size=260, vocab_multiple=1, attention_pattern=("dense",))
TRAINED = [
    "--config.train.tokens=512", "--config.train.sequence_length=16", "--config.train.batch_tokens=256",
    "--config.compute.dtype=float32", "--config.compute.loss_chunk=0", "--config.log.tensorboard=false",
    "--config.eval.tokens=128", "--config.optimizer.warmup_tokens=0", "--config.optimizer.peak_lr=0.1",
    "--config.data.tokenizer=",
]  # fmt: skip


@pytest.fixture(scope="module", params=FAMILIES)
def made(request, tmp_path_factory):
    """The folder of a base, that of a run with adapters exported whole, and that of the adapters."""
    root, switches = tmp_path_factory.mktemp(request.param), tiny.SWITCHES.get(request.param, {})
    model = tiny.model(**OFF, **switches)
    random = np.random.default_rng(0)
    params = jax.tree.map(lambda x: 0.2 * random.standard_normal(x.shape, np.float32), decoder.abstract(model))
    huggingface.save(model, params, root / "hf")
    assert json.loads((root / "hf" / "config.json").read_text())["model_type"] == FAMILIES[request.param]
    import_folder(root / "hf", root / "base", "bytes")
    (root / "any.py").write_text("get_config = __import__('scaling.config', fromlist=['x']).default_config\n")
    lora = [f"--config.lora.rank={RANK}", f"--config.lora.alpha={ALPHA}"]
    if request.param in MATRICES:
        lora.append(f"--config.lora.matrices={MATRICES[request.param]}")
    words = ["train", f"--config={root}/any.py", f"--config.workdir={root}/run", f"--config.start={root}/base"]
    assert cli.main([*words, *TRAINED, *lora]) == 0
    assert cli.main(["export", str(root / "run"), str(root / "whole")]) == 0
    assert cli.main(["export", str(root / "run"), str(root / "adapters"), "--adapters"]) == 0
    return request.param, root


def read(folder: Path, name: str = "model.safetensors") -> dict[str, np.ndarray]:
    return safetensors.numpy.load_file(folder / name)


@pytest.mark.slow
def test_base_and_adapters_are_the_whole_model(made):
    """PEFT adds lora_alpha / r * lora_B lora_A to a weight [outputs, inputs], transposed with fan_in_fan_out."""
    _, root = made
    base, whole, found = read(root / "hf"), read(root / "whole"), read(root / "adapters", "adapter_model.safetensors")
    about = json.loads((root / "adapters" / "adapter_config.json").read_text())
    changed = set()
    for name in (name for name in found if ".lora_A." in name):
        module = name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
        (target,) = (target for target in about["target_modules"] if module.endswith(f".{target}"))
        a, b = found[name], found[name.replace("lora_A", "lora_B")]
        assert len(a) == about["rank_pattern"].get(target, about["r"])
        change = about["alpha_pattern"].get(target, about["lora_alpha"]) / len(a) * b @ a
        weight = f"{module}.weight"
        base[weight] = base[weight] + (change.T if about["fan_in_fan_out"] else change)
        changed.add(weight)
        assert np.abs(change).max() > 1e-3
    assert base.keys() == whole.keys()
    for name, tensor in whole.items():
        np.testing.assert_allclose(base[name], tensor, atol=2e-6 if name in changed else 0, err_msg=name)


@pytest.mark.slow
def test_names_and_shapes_are_those_of_peft(made):
    kind, root = made
    written = json.loads((Path(__file__).parents[1] / "fixtures" / "peft.json").read_text())[kind]
    found = read(root / "adapters", "adapter_model.safetensors")
    assert {name: list(tensor.shape) for name, tensor in found.items()} == written["tensors"]
    about = json.loads((root / "adapters" / "adapter_config.json").read_text())
    assert about.pop("base_model_name_or_path") == str(root / "hf")
    assert about == {key: written["config"][key] for key in about}


@pytest.mark.slow
def test_a_run_without_adapters_is_refused(made, capsys):
    _, root = made
    assert cli.main(["export", str(root / "base"), str(root / "none"), "--adapters"]) == exit_codes.USAGE
    assert "has no adapters" in capsys.readouterr().err and not (root / "none").exists()
