import re
from pathlib import Path

import pytest

from scaling.catalog import sizes
from scaling.config.files import call, load, run_name
from scaling.config.resolve import resolve
from scaling.corpus import config as corpus
from scaling.sweep.plan import plan
from scaling.train.schedule import learning_rate

ROOT = Path(__file__).parent.parent
ELSE = ("sweeps", "in_context", "rewards", "data")
# That a user runs, and that are no configs.
PROGRAMS = [
    ROOT / "experiments" / name
    for name in (
        "instructgpt/overoptimisation.py",
        "bert_gpt/compare.py",
        "bert_gpt/probes.py",
        "bert_gpt/summary.py",
        "bert_gpt/text_to_text.py",
        "lstm/compare.py",
        "lstm/figure.py",
        "lstm/lstm.py",
        "seq2seq/bigram.py",
    )
]
FILES = sorted(p for p in ROOT.glob("experiments/*/*.py") if p.parent.name not in ELSE and p not in PROGRAMS)
SIZES = {"filtering": 3}  # where a sweep is about data, and has fewer sizes
SWEEPS = sorted(ROOT.glob("experiments/sweeps/*.py"))


def _load(path, **kwargs):
    return resolve(load(str(path)), **kwargs)


def _devices(config):
    return config.mesh.devices


def test_every_published_size_has_a_file():
    assert {p.stem for p in FILES if p.parent.name == "gpt3"} == set(sizes.GPT3)
    assert {p.stem for p in FILES if p.parent.name == "gpt2"} == set(sizes.GPT2)
    assert ROOT / "experiments/gpt1/gpt1.py" in FILES


@pytest.mark.parametrize("path", FILES, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_resolves_on_its_mesh(path):
    config = load(str(path))
    resolved = _load(path, vocab_size=config.model.vocab_size or 257, device_count=_devices(config))
    assert resolved.mesh.data == 1
    assert resolve(resolved, device_count=_devices(config)) == resolved


@pytest.mark.parametrize("path", FILES, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_docstring_tells_command_machine_time_and_loss(path):
    text = path.read_text()
    docstring = text.split('"""')[1]
    assert re.search(rf"scaling (train|distill|align \w+) --config={path.relative_to(ROOT)}", docstring)
    assert "Machine:" in docstring
    assert "ime" in docstring
    assert "loss" in docstring


NAMED = [p for p in FILES if p.parent.name.startswith("gpt") and p.stem != "finetune"]  # that has its start's model


@pytest.mark.parametrize("path", NAMED, ids=lambda p: p.stem)
def test_parameters_match_the_name(path):
    counted = sizes.parameters(_load(path).model).total
    name = {"gpt1": "117m"}.get(path.stem, path.stem)
    in_name = float(name[:-1]) * {"m": 1e6, "b": 1e9}[name[-1]]
    # Names round: 1.3B is 1,316M, 350M is 356M.
    assert counted == pytest.approx(in_name, rel=0.02)
    assert path.stem in (sizes.GPT1 | sizes.GPT2 | sizes.GPT3)


@pytest.mark.parametrize("path", [p for p in FILES if p.parent.name == "gpt3"], ids=lambda p: p.stem)
def test_gpt3_recipe_is_appendix_b(path):
    config, size = _load(path), sizes.GPT3[path.stem]
    optimizer, train = config.optimizer, config.train
    assert (optimizer.beta1, optimizer.beta2, optimizer.epsilon) == (0.9, 0.95, 1e-8)
    assert (optimizer.clip_norm, optimizer.weight_decay) == (1.0, 0.1)
    assert (optimizer.schedule, optimizer.final_fraction) == ("cosine", 0.1)
    assert (optimizer.warmup_tokens, optimizer.decay_tokens) == (375_000_000, 260_000_000_000)
    assert optimizer.peak_lr == size.peak_lr
    assert train.tokens == 300_000_000_000
    assert train.sequence_length == 2048
    assert train.ramp_start_tokens == 32_768
    assert 4_000_000_000 <= train.ramp_tokens <= 12_000_000_000
    assert config.model.attention_pattern == ("dense", "banded")
    assert config.data.tokenizer == "gpt2"
    assert not config.model.document_mask


def test_gpt3_125m_runs_on_eight_devices_and_on_one():
    path = ROOT / "experiments/gpt3/125m.py"
    for count in (1, 8):
        resolved = _load(path, vocab_size=50_257, device_count=count)
        assert resolved.mesh.data == count
        assert resolved.train.microbatch_sequences == 16
        assert resolved.eval.batch_sequences == 16
        assert resolved.model.d_head == 64


def test_run_names():
    assert run_name("experiments/gpt3/125m.py") == "125m"
    assert run_name("my sweep.py:width=3, lr") == "my sweep-width=3-lr"


@pytest.mark.parametrize("path", SWEEPS, ids=lambda p: p.stem)
def test_sweeps_expand_and_say_how_they_are_run(path):
    runs = plan(call(str(path), "get_sweep"), name=path.stem)
    assert len(runs) >= 5
    assert len({run.scale.params.total for run in runs}) >= SIZES.get(path.stem, 5)
    assert all(0 < run.config.optimizer.peak_lr < 0.1 and run.steps >= 100 for run in runs)
    docstring = path.read_text().split('"""')[1]
    assert f"scaling sweep --config={path.relative_to(ROOT)}" in docstring
    assert "Machine:" in docstring and "hour" in docstring


def test_what_the_sweeps_of_filtering_train_on_is_what_the_corpora_are_built_as():
    corpora = str(ROOT / "experiments/data/filtering.py")
    for part, count in (("", 7 * 3 * 3), (",mixtures", 2 * 3)):
        runs = plan(call(f"{ROOT / 'experiments/sweeps/filtering.py'}:text/mine{part}", "get_sweep"))
        assert len(runs) == count
        assert {run.config.data.validation for run in runs} == {"text/mine/held_out.jsonl.gz"}
        for source in {run.config.data.train for run in runs}:
            name = source.removesuffix("/tokens/crawl").removeprefix("runs/filtering-text-mine-")
            spec = f"{corpora}:text/mine,{name}"
            built = corpus.load(spec)
            assert source.removesuffix("/tokens/crawl") == f"runs/{run_name(spec)}"
            assert source.endswith("/tokens/crawl") == (built.names == ("crawl",))
            if "quality" in built.stages:
                assert built.quality.classifier.startswith("runs/filtering-text-mine-classifier/")
    with pytest.raises(ValueError, match="'best' must be"):
        corpus.load(f"{corpora}:text/mine,best")
    with pytest.raises(ValueError, match="'half' must be"):
        call(f"{ROOT / 'experiments/sweeps/filtering.py'}:text/mine,half", "get_sweep")


def test_the_corpora_of_filtering_hold_what_they_say():
    spec = f"{ROOT / 'experiments/data/filtering.py'}:text"
    files = [source[1] for source in corpus.load(f"{spec},part25").sources]
    assert files == [f"text/crawl/{number:02d}.jsonl.gz" for number in range(4)]
    assert corpus.load(f"{spec},best12.5").quality.best == 0.125
    trained = corpus.load(f"{spec},classifier")
    number = trained.stages.index("quality") + 1
    assert corpus.load(f"{spec},built").quality.classifier.endswith(f"stages/{number:02d}-quality/classifier.npz")
    assert trained.quality.classes(trained.names) == {"books": 1, "wikipedia": 1, "crawl_sample": 0}


def test_the_parts_of_the_ladder_are_the_same_runs():
    path = str(ROOT / "experiments/sweeps/cpu_ladder.py")
    demo, full = (plan(call(f"{path}{part}", "get_sweep")) for part in (":demo", ""))
    assert {run.name for run in demo} < {run.name for run in full}
    assert len({run.scale.params.total for run in demo}) >= 5
    with pytest.raises(ValueError, match="not a part"):
        call(f"{path}:none", "get_sweep")


def test_berts_learning_rate_goes_on_where_the_lengths_change():
    path = ROOT / "experiments/encoders/bert.py"
    short, long, whole = (
        resolve(load(f"{path}:{choice}"), vocab_size=30_522) for choice in ("base,128", "base,512", "base")
    )
    steps = [config.train.tokens // config.train.batch_tokens for config in (short, long, whole)]
    assert steps == [900_000, 100_000, 1_000_000] and short.model == long.model == whole.model

    def rate(config, step):
        tokens = step * config.train.batch_tokens
        return learning_rate(config.optimizer, tokens, config.train.tokens)

    for step in (5_000, 400_000, 900_000):
        assert rate(short, step) == pytest.approx(rate(whole, step), rel=1e-9)
    for step in (0, 40_000, 100_000):
        assert rate(long, step) == pytest.approx(rate(whole, 900_000 + step), rel=1e-9, abs=1e-15)
