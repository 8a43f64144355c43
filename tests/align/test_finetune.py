"""``scaling align finetune``: its objective against whole logits, its rows, knobs and runs."""

import dataclasses
import functools
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scaling import cli, exit_codes
from scaling.align import classify, finetune
from scaling.align import task as tasks
from scaling.config import schema as cfg
from scaling.data import tokenizer
from scaling.data.batch import filled, scored
from scaling.data.chat.dialogues import Skipped
from scaling.evaluate.scoring.metrics import macro_f1
from scaling.model import decoder
from scaling.objectives.classification import Form, classification, derived
from scaling.parallel.mesh import make_mesh, one_device
from scaling.parallel.sharding import batch_sharding
from scaling.runs.model import load_checkpoint
from scaling.runs.start import Start
from tests import shared, tiny

FORMS = {
    "classes": Form(rows=1, classes=3),
    "both_orders": Form(rows=2, classes=2),
    "choices": Form(rows=3, classes=3, chooses=True),
    "number": Form(rows=2, classes=0),
}
ROOM, EXAMPLES = 12, 8


def config_of(form, **align):
    model = tiny.model(outputs=form.outputs)
    return cfg.Config(model=model, compute=tiny.COMPUTE, align=cfg.Align(**align))


def examples_of(form, texts=None):
    """Rows of examples of random texts of different lengths; of choices, some examples lack the last."""
    rng, made = np.random.default_rng(3), []
    for number in range(EXAMPLES):
        count = form.rows - (form.chooses and number % 3 == 1)
        label = rng.integers(count if form.chooses else form.classes) if form.classes else rng.normal()
        rows = [rng.integers(1, tiny.VOCAB, rng.integers(3, ROOM + 1)).astype(np.int32) for _ in range(count)]
        rows = [scored(ids, ROOM, float(label), 1 / (count * (len(ids) - 1))) for ids in rows]
        made.append(rows + [scored(np.zeros(0, np.int32), ROOM, 0)] * (form.rows - count))
    return made


def batch_of(examples, padding=0):
    rows = [row for example in examples for row in example]
    batch = filled((1, len(rows) + padding), {(0, i): row for i, row in enumerate(rows)})
    return jax.tree.map(lambda x: x[0], batch)


def params_of(config):
    params = decoder.initialize(config.model, jax.random.key(0))
    head = jax.random.normal(jax.random.key(1), params["head"].shape)
    return params | {"head": head}  # the initial one is small, so that all answers would be alike


@functools.lru_cache
def compiled(config, form):
    objective = classification(config, form)

    def total(params, batch):
        sums = objective(decoder.merge(config.network, params), None, batch, None)
        return sums.objective, sums

    return jax.jit(jax.grad(total, has_aux=True))


def sums_of(config, form, params, batch, mesh=None):
    """The gradient of what the objective minimises, and its sums."""
    with jax.set_mesh(mesh or one_device()):
        return compiled(config, form)(params, batch)


def close(found, wanted):
    """Equal to within rounding: relative to the largest number, or to 1 where terms cancel, as for biases of keys."""
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5 * max(1.0, float(np.abs(wanted).max())))


@pytest.mark.parametrize("name", FORMS)
def test_losses_and_gradients_are_those_of_whole_logits(name):
    form = FORMS[name]
    config = config_of(form, lm_weight=0.5)
    examples, params = examples_of(form), params_of(config)

    rows = [row for rows in examples for row in rows]
    tokens = np.stack([row.tokens for row in rows])
    lengths = np.array([int(row.reads.argmax()) + 1 if row.reads.any() else 0 for row in rows])
    labels = [rows[0].labels.sum() for rows in examples]

    def direct(params):
        model = decoder.merge(config.network, params)
        hidden = model(jnp.asarray(tokens))
        log_probs = jax.nn.log_softmax(model.logits(hidden))
        found, lm_loss = [], 0.0
        for first in range(0, len(rows), form.rows):
            there = [i for i in range(first, first + form.rows) if lengths[i]]
            for i in there:
                n = lengths[i] - 1
                lm_loss -= log_probs[i, np.arange(n), tokens[i, 1 : n + 1]].mean() / len(there)
            states = jnp.stack([hidden[i, lengths[i] - 1] for i in there])
            made = states if form.chooses else states.sum(0, keepdims=True)
            found.append((made @ params["head"] + params["head_bias"]).reshape(-1))
        if form.classes:
            each = [-jax.nn.log_softmax(x)[int(y)] for x, y in zip(found, labels, strict=True)]
        else:
            each = [(x[0] - y) ** 2 for x, y in zip(found, labels, strict=True)]
        return sum(each) + 0.5 * lm_loss, (sum(each), lm_loss, found)

    with jax.set_mesh(one_device()):
        wanted, (loss, lm_loss, found) = jax.jit(jax.grad(direct, has_aux=True))(params)
    got, sums = sums_of(config, form, params, batch_of(examples))
    assert sums.weight == EXAMPLES
    np.testing.assert_allclose([sums.metrics["loss"], sums.metrics["lm_loss"]], [loss, lm_loss], rtol=1e-5)
    jax.tree.map(close, got, wanted)
    if form.classes:
        assert sums.metrics["accuracy"] == sum(int(x.argmax()) == y for x, y in zip(found, labels, strict=True))
    else:
        means = {"moments": (sums.metrics["moments"] / EXAMPLES).tolist()}
        expected = np.corrcoef([float(x[0]) for x in found], labels)[0, 1]
        np.testing.assert_allclose(derived(means)["pearson"], expected, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["choices", "number"])
def test_padding_parts_and_devices_change_nothing(name):
    form = FORMS[name]
    config = config_of(form, lm_weight=0.5)
    examples, params = examples_of(form), params_of(config)
    whole = sums_of(config, form, params, batch_of(examples))
    padded = sums_of(config, form, params, batch_of(examples, padding=2 * form.rows))
    parts = [sums_of(config, form, params, batch_of(examples[i : i + 4])) for i in (0, 4)]
    added = jax.tree.map(lambda *each: sum(each), *parts)
    mesh = make_mesh(cfg.Mesh(data=2, fsdp=4))
    batch = jax.tree.map(lambda x: x[None], batch_of(examples))
    placed = jax.tree.map(lambda x: x[0], jax.device_put(batch, batch_sharding(mesh)))
    there = jax.device_put(params, decoder.shardings(config.model, mesh))
    on_mesh = sums_of(config, form, there, placed, mesh)
    for other in (padded, added, on_mesh):
        jax.tree.map(close, other, whole)
    assert padded[1].weight == EXAMPLES


def test_orders_are_alike_and_head_alone_has_no_other_gradient():
    form = FORMS["both_orders"]
    config = config_of(form, lm_weight=0.5)
    config = dataclasses.replace(config, optimizer=cfg.Optimizer(trained="head"))
    examples, params = examples_of(form), params_of(config)
    gradient, sums = sums_of(config, form, params, batch_of(examples))
    _, swapped = sums_of(config, form, params, batch_of([rows[::-1] for rows in examples]))
    np.testing.assert_allclose(swapped.metrics["loss"], sums.metrics["loss"], rtol=1e-6)
    np.testing.assert_array_equal(swapped.metrics["confusion"], sums.metrics["confusion"])
    changed = {name: any(np.any(x) for x in jax.tree.leaves(gradient[name])) for name in gradient}
    assert {name for name in changed if changed[name]} == {"head", "head_bias"}


def test_f1_of_a_confusion_matrix():
    rng = np.random.default_rng(0)
    golds, said = rng.integers(3, size=50), rng.integers(2, size=50)
    table = np.zeros((4, 4))  # a class that does not occur is left out
    np.add.at(table, (golds, said), 1 / 50)
    found = derived({"confusion": table.tolist()})["macro_f1"]
    np.testing.assert_allclose(found, macro_f1(golds.tolist(), said.tolist()))
    assert derived({"moments": [1.0, 2.0, 1.0, 4.5, 2.0]}) == {"pearson": 0.0}  # one side is constant


def test_matthews_correlation_of_a_confusion_matrix():
    rng = np.random.default_rng(0)
    for classes in (2, 3):
        golds, said = rng.integers(classes, size=60), rng.integers(classes, size=60)
        said[:30] = golds[:30]
        table = np.zeros((classes, classes))
        np.add.at(table, (golds, said), 1 / 60)
        one, other = (np.eye(classes)[each] for each in (golds, said))  # of indicators: Gorodkin 2004

        def covariance(x, y):
            return ((x - x.mean(0)) * (y - y.mean(0))).sum()

        expected = covariance(one, other) / np.sqrt(covariance(one, one) * covariance(other, other))
        np.testing.assert_allclose(derived({"confusion": table.tolist()})["matthews"], expected, rtol=1e-12)
        if classes == 2:
            np.testing.assert_allclose(expected, np.corrcoef(golds, said)[0, 1], rtol=1e-12)
    assert derived({"confusion": [[0.3, 0.0], [0.7, 0.0]]})["matthews"] == 0.0  # one answer alone


def test_control_tokens_surround_the_texts():
    words = tokenizer.load("bytes+task")
    rows = [row.ids for row in finetune.layout(words, True)(tasks.Example("", (("ab", "c"), ("c", "ab"))))]
    assert [row.tolist() for row in rows] == [[257, 97, 98, 258, 99, 259], [257, 99, 258, 97, 98, 259]]
    assert words.decode(rows[0]) == "<|start|>ab<|delimiter|>c<|extract|>"
    both = tokenizer.load("bytes+chat+task")
    assert both.vocab_size == 264 and both.controls["<|start|>"] == 261 and both.controls["<|user|>"] == 258
    assert both.chat_template == tokenizer.load("bytes+chat").chat_template
    assert both.decode([258, 97, 263]) == "<|user|>a<|extract|>"
    with pytest.raises(ValueError, match=r"bytes\+task"):
        finetune.layout(tokenizer.load("bytes"), True)


SIZES = ["num_layers=2", "d_model=32", "num_heads=2", "context_length=32", "vocab_multiple=8"]
KNOBS = [
    "--config.compute.dtype=float32",
    "--config.compute.loss_chunk=0",
    "--config.log.tensorboard=false",
    "--config.log.every_steps=1",
    "--config.eval.tokens=2048",
    "--config.train.batch_tokens=512",
    "--config.optimizer.warmup_tokens=0",
]
TASK = """
texts = ["{text}"]
label = "{kind}"
labels = { a = "vowel", b = "consonant" }
"""


def run(folder, verb, name, *arguments):
    words = [*verb.split(), f"--config={folder}/any.py", f"--config.workdir={folder}/{name}", *KNOBS, *arguments]
    return cli.main(words)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny run of byte text, ``base``, and a task: which letter a text has."""
    folder = tmp_path_factory.mktemp("finetune")
    (folder / "any.py").write_text("get_config = __import__('scaling.config', fromlist=['x']).default_config\n")
    base = [f"--config.model.{size}" for size in SIZES] + ["--config.data.tokenizer=bytes"]
    assert run(folder, "train", "base", *base, "--config.train.tokens=2048") == 0
    (folder / "letters.toml").write_text(TASK)
    (folder / "three.toml").write_text('texts = ["{text}"]\nlabel = "{kind}"\nchoices = ["x", "y", "z"]\n')
    records = [{"text": "ab"[i % 2] * (1 + i % 5), "kind": "ab"[i % 2]} for i in range(96)]
    for name, part in (("train", records[:64]), ("dev", records[64:])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in part))
    return folder


def tune(folder, name, *arguments):
    more = [f"--config.start={folder}/base", "--config.data.tokenizer=", f"--task={folder}/letters.toml"]
    files = [f"--config.data.train={folder}/train.jsonl", f"--config.data.validation={folder}/dev.jsonl"]
    return run(folder, "align finetune", name, *more, *files, "--config.align.epochs=6", *arguments)


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


WHOLE = ["--config.optimizer.peak_lr=0.01", "--config.align.dropout=0.1", "--config.align.lm_weight=0.5"]


@pytest.fixture(scope="module")
def tuned(folder):
    """The run ``whole``."""
    assert tune(folder, "whole", *WHOLE) == 0
    return folder / "whole"


@pytest.mark.slow
def test_it_learns_and_classifies(folder, tuned, capsys):
    found = lines_of(tuned / "evals.jsonl")[-1]
    assert found["eval_tokens"] == 32 and found["accuracy"] > 0.9 and found["macro_f1"] > 0.9
    assert cli.main(["align", "classify", str(tuned), f"{folder}/dev.jsonl"]) == 0
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    names = {"a": "vowel", "b": "consonant"}
    right = [a["label"] == names[r["kind"]] for a, r in zip(answers, lines_of(folder / "dev.jsonl"), strict=True)]
    assert np.mean(right) == found["accuracy"]
    for answer in answers:
        assert list(answer["probabilities"]) == ["vowel", "consonant"]
        np.testing.assert_allclose(sum(answer["probabilities"].values()), 1, rtol=1e-6)
    (folder / "texts.txt").write_text("aaab\nec\n")
    assert cli.main(["align", "classify", str(tuned), f"{folder}/texts.txt", "--batch=1"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2
    (folder / "long.txt").write_text("a\n" + "b" * 40 + "\n")
    assert cli.main(["align", "classify", str(tuned), f"{folder}/long.txt"]) == exit_codes.USAGE
    assert "long.txt:2: its 42 tokens do not fit the model's 32" in capsys.readouterr().err
    assert cli.main(["align", "classify", f"{folder}/base", f"{folder}/texts.txt"]) == exit_codes.USAGE


@pytest.mark.slow
def test_a_run_that_is_cut_short_goes_on_to_the_same_curve(folder, tuned):
    saves = ["--config.checkpoint.every_steps=3", "--config.checkpoint.keep_last=100"]
    assert tune(folder, "cut", *WHOLE, *saves) == 0
    for step in sorted((folder / "cut" / "checkpoints").iterdir())[1:]:
        shutil.rmtree(step)
    assert tune(folder, "cut", *WHOLE, *saves) == 0
    curves = [[line["loss"] for line in lines_of(folder / name / "metrics.jsonl")] for name in ("cut", "whole")]
    assert curves[0] == curves[1] and len(curves[0]) == 24


@pytest.mark.slow
def test_the_head_alone_changes_in_microbatches_on_devices(folder):
    arguments = ["--config.optimizer.trained=head", "--config.optimizer.peak_lr=0.1", "--config.align.lm_weight=0.5"]
    assert tune(folder, "head", *arguments, "--config.optimizer.weight_decay=0.5") == 0
    more = ["--config.train.microbatch_sequences=8", "--config.mesh.fsdp=4"]
    assert tune(folder, "parts", *arguments, "--config.optimizer.weight_decay=0.5", *more) == 0
    curves = [[line["loss"] for line in lines_of(folder / name / "metrics.jsonl")] for name in ("head", "parts")]
    np.testing.assert_allclose(curves[0], curves[1], rtol=2e-5)
    config = cfg.freeze(json.loads((folder / "head" / "config.json").read_text())["config"])
    before = Start.of(config, folder / "head").params(config.model, one_device(), config.seed)
    after = load_checkpoint(folder / "head", one_device()).params
    for name in before:
        if name.startswith("head"):
            assert np.any(before[name] != after[name])
        else:
            jax.tree.map(np.testing.assert_array_equal, before[name], after[name])


def test_transferred_layers_are_those_of_the_start(folder):
    config = cfg.Config(start=str(folder / "base"), workdir=str(folder / "none"), data=cfg.Data(tokenizer=""))
    start = Start.of(config, folder / "none")
    words = tokenizer.load(start.tokenizer(config, suffix="+task"))
    model = dataclasses.replace(start.model_for(config, words), outputs=2)
    old = load_checkpoint(folder / "base", one_device()).params
    whole, one, embeddings, nothing = (start.params(model, one_device(), 0, layers) for layers in (-1, 1, 0, -2))
    fresh = start.params(model, one_device(), 0, layers=-2)
    for params, layers in ((whole, 2), (one, 1), (embeddings, 0)):
        np.testing.assert_array_equal(params["tokens"][:257], old["tokens"][:257])
        np.testing.assert_allclose(params["tokens"][257:260], np.tile(old["tokens"][:257].mean(0), (3, 1)), atol=1e-7)
        np.testing.assert_array_equal(params["positions"], old["positions"])
        for got, there, new in zip(
            *map(jax.tree.leaves, (params["blocks"], old["blocks"], fresh["blocks"])), strict=True
        ):
            np.testing.assert_array_equal(got[:layers], there[:layers])
            np.testing.assert_array_equal(got[layers:], new[layers:])
    assert np.any(nothing["tokens"][:257] != old["tokens"][:257])
    jax.tree.map(np.testing.assert_array_equal, whole["final_norm"], old["final_norm"])
    jax.tree.map(np.testing.assert_array_equal, one["final_norm"], fresh["final_norm"])


BAD = {
    "'c' is none of 'a', 'b'": {"text": "x", "kind": "c"},
    "the record has no 'kind'": {"text": "x"},
    "texts is empty": {"text": " ", "kind": "a"},
    "its 42 tokens do not fit": {"text": "x" * 40, "kind": "a"},
}


@pytest.mark.parametrize("wrong", BAD)
def test_bad_records_are_refused_or_skipped_aloud(folder, wrong, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(finetune.log.parent.parent, "propagate", True)
    path = tmp_path / "bad.jsonl"
    path.write_text(
        "".join(json.dumps(r) + "\n" for r in ({"text": "y", "kind": "a"}, BAD[wrong], {"text": "z", "kind": "b"}))
    )
    task, words = tasks.load(folder / "letters.toml"), tokenizer.load("bytes+task")
    sizes = cfg.Train(sequence_length=32, microbatch_sequences=4)
    config = cfg.Config(
        data=cfg.Data(train=str(path), validation=str(path)), train=sizes, eval=cfg.Eval(batch_sequences=4)
    )
    with pytest.raises(ValueError, match=f"bad.jsonl:2: .*{wrong}"):
        finetune.data(config, words, task)
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, bad_records="skip"))
    found = finetune.data(config, words, task)
    assert found.training.sequences == len(found.held_out) == 2
    assert "bad.jsonl:2" in caplog.text and wrong in caplog.text


@pytest.mark.parametrize("model", [cfg.Model(tied_embedding=False), cfg.Model(logit_bias=True)])
def test_the_loss_of_the_language_model_needs_its_output(model):
    """The head of a task takes the place of an output table or bias, so there is nothing to make logits with."""
    config = cfg.Config(model=model, align=cfg.Align(lm_weight=0.5), train=cfg.Train(sequence_length=32))
    with pytest.raises(ValueError, match=r"config\.align\.lm_weight=0\.5 must be 0 for a model with an output"):
        finetune.data(config, tokenizer.load("bytes+task"), tasks.find("sst2"))


MISTAKES = {
    "did you mean sst2?": ["--task=sst3"],
    "no_task.toml": ["--task={0}/no_task.toml"],
    "at most the 2 layers": ["--config.align.layers=3"],
    "must be a file": ["--config.data.train={0}/nothing"],
    "rows of an example": ["--task={0}/three.toml"],
    "must hold one example": ["--config.eval.tokens=8"],
    "config.optimizer.trained": ["--config.optimizer.trained=tail"],
    "needs --config.start": ["--config.start="],
}


@pytest.mark.parametrize("wrong", MISTAKES)
def test_mistakes_are_refused_and_nothing_is_written(folder, wrong, capsys):
    assert tune(folder, "wrong", *[word.format(folder) for word in MISTAKES[wrong]]) == exit_codes.USAGE
    assert wrong in capsys.readouterr().err
    assert not (folder / "wrong").exists()


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ('label = "{x}"', "texts is missing"),
        ('texts = ["{a}"]\nlabel = "{x}"\nboth_orders = true', "both_orders"),
        ('texts = ["{a}"]\nlabel = "{x}"\nlabels = ["one"]', "at least two"),
        ('texts = ["{a}"]\nlabel = "{x}"\nchoices = "c"', "most_choices is missing"),
        ('texts = ["{a}"]\nlable = "{x}"', "did you mean task.label"),
        ('texts = ["{a}"]\nlabel = "{x}"\ndata_of = "sst"', "did you mean 'sst2'"),
    ],
)
def test_mistakes_in_task_files(text, wrong, tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(ValueError, match=wrong):
        tasks.load(path)


SHIPPED = {  # folder of the shared data, examples to train on and held out, form
    "sst2": ("eval/text_cls", 6920, 1821, Form(1, 2)),
    "rte": ("eval/text_cls", 2490, 277, Form(1, 2)),
    "cb": ("eval/text_cls", 250, 56, Form(1, 3)),
    "agnews": ("eval/text_cls/agnews_test.csv.gz", 7600, 7600, Form(1, 4)),
    "cola": ("more/finetune", 8551, 527, Form(1, 2)),
    "stsb": ("more/finetune", 5749, 1500, Form(2, 0)),
    "mrpc": ("more/finetune", 3667, 1725, Form(2, 2)),
    "copa": ("more/finetune", 500, 500, Form(2, 2, chooses=True)),
}


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_tasks_read_their_data(name):
    place, train, test, form = SHIPPED[name]
    path = shared.SHARED / "data" / place
    task = tasks.find(name)
    assert task.form == form and task.layout.about
    if not path.exists():
        pytest.skip(f"needs {place} of the shared development data")
    for split, count in (("train", train), ("test", test)):
        found = list(tasks.read(task, str(path), split, Skipped(refuses=True)))
        assert len(found) == count and all(len(example.rows) == form.rows for example in found)
    if form.classes:
        assert {example.label for example in found} == set(range(form.classes))


def test_choices_that_a_record_lacks_have_no_probability(folder, tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text('texts = ["{q}"]\nlabel = "{y}"\nchoices = "c"\nmost_choices = 3\n')
    task, words = tasks.load(path), tokenizer.load("bytes+task")
    model = tiny.model(vocab_size=words.vocab_size, outputs=1, context_length=16)
    network = cfg.Network(model, tiny.COMPUTE)
    params = decoder.initialize(model, jax.random.key(0))
    served = classify.Served(network, params, words, one_device(), None, None)
    (tmp_path / "q.jsonl").write_text('{"q": "a", "c": ["b", "cc"]}\n{"q": "d", "c": ["b", "c", "d"]}\n')
    asked = classify.examples(task, tmp_path / "q.jsonl")
    found = classify.Classifier(served, task)(asked)
    assert found[0, 2] == 0 and np.all(found[1] > 0)
    np.testing.assert_allclose(found.sum(1), 1, rtol=1e-6)
    lengths = [len(json.loads(line)["probabilities"]) for line in classify.lines(task, found, asked)]
    assert lengths == [2, 3]
