"""Fine-tuning for spans and tags: rows, losses, what is learned, what is said, and bad input."""

import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scaling import cli, exit_codes
from scaling.align import classify, finetune, marking, passages
from scaling.align import task as tasks
from scaling.config import schema as cfg
from scaling.data import tokenizer
from scaling.data.batch import filled
from scaling.data.chat.dialogues import Skipped
from scaling.model import decoder
from scaling.objectives import marking as objectives
from scaling.parallel.mesh import make_mesh, one_device
from scaling.parallel.sharding import batch_sharding
from tests import shared, tiny
from tests.align.conftest import SIZES
from tests.align.test_encoder import ENCODER
from tests.align.test_finetune import close

TAGS = 'words = "words"\nlabel = "tags"\nlabels = ["O", "B-vowel", "I-vowel"]\n'
SPANS = 'texts = ["{question}", "{context}"]\nlabel = "{answer}"\nspan = "{start}"\n'


def ids(row, count):
    return bytes(row.tokens[:count].tolist())


def tagged(*words):
    return passages.tagged("x:1", words, ["O"] * (len(words) - 1) + ["B-vowel"], ("O", "B-vowel", "I-vowel"))


def test_a_word_is_read_at_its_first_token_by_an_encoder_and_at_its_last_by_a_decoder():
    sentence = tagged("ab", "c")
    for causal, places in ((False, [1, 3]), (True, [2, 4])):
        words = tokenizer.load("bytes+task" if causal else "bytes+mask")
        ((row, first, found),) = marking.windows(words, causal, 8, spans=False)(sentence)
        assert first == 0 and found.tolist() == places == np.flatnonzero(row.reads).tolist()
        assert row.tokens[1:5].tolist() == list(b"ab c")
        assert row.labels[places].tolist() == [0, 1]
        assert (row.types is None) == causal


def test_a_span_stands_in_the_rows_that_have_all_of_it_and_elsewhere_in_none():
    text = passages.answered("x:1", ["q", "ab (cd) ef"], ("cd", 4))
    assert text.words == ("ab", " (", "cd", ")", " ef") and text.labels == (0, 0, 3, 0, 0)
    assert text.answer(1, 3) == "(cd)" and text.references == ("cd",)
    words = tokenizer.load("bytes+mask")
    begin, separator = (words.controls[token] for token in ("<|begin|>", "<|separator|>"))
    rows = marking.windows(words, False, 10, spans=True)(text)  # 6 tokens of text in a row
    assert [row.tokens[:3].tolist() for row, _, _ in rows] == [[begin, ord("q"), separator]] * len(rows)
    held = [bytes(row.tokens[3 : int(row.types.sum()) + 2].tolist()) for row, _, _ in rows]
    assert held == [b"ab (cd", b"cd) ef"]
    for row, _, places in rows:
        assert np.flatnonzero(row.weights).tolist() == [0, *places]
        assert row.reads.tolist() == [1] + [0] * 9
        assert row.labels[places].sum() == 3 and row.labels[0] == 0
    two = passages.answered("x:1", ["q", "ab (cd) ef"], ("cd) ef", 4))
    assert [int(row.labels[0]) for row, _, _ in marking.windows(words, False, 10, spans=True)(two)] == [3, 0]
    (last, _, places), *_ = marking.windows(tokenizer.load("bytes+task"), True, 16, spans=True)(text)
    assert np.flatnonzero(last.weights).tolist() == [*places, 13] and np.flatnonzero(last.reads).tolist() == [13]


def test_cut_rows_have_every_word_and_overlap_by_half():
    rng = np.random.default_rng(0)
    for _ in range(50):
        sizes = rng.integers(1, 6, rng.integers(1, 40))
        for overlap in (0, 5):
            cuts = marking._cuts(sizes, 10, overlap)
            assert cuts[0][0] == 0 and cuts[-1][1] == len(sizes)
            assert all(sizes[first:last].sum() <= 10 and last > first for first, last in cuts)
            for (first, last), (again, after) in itertools.pairwise(cuts):
                assert first < again <= last < after
                assert sizes[again:last].sum() <= overlap


def test_the_likeliest_answer_of_all_rows_is_found():
    rng = np.random.default_rng(1)
    text = passages.answered("x:1", [" ".join("ab" for _ in range(60))])
    words = tokenizer.load("bytes+mask")
    marked = marking.Marked(text, marking.windows(words, False, 150, spans=True)(text))
    assert len(marked.windows) > 1
    for _ in range(5):
        scores = [rng.normal(size=(150, 2)) for _ in marked.windows]
        best = max(
            (float(each[p, 0] + each[q, 1]), window.first + i, window.first + j)
            for window, each in zip(marked.windows, scores, strict=True)
            for i, p in enumerate(window.places)
            for j, q in enumerate(window.places)
            if i <= j < i + 30
        )
        assert marking.span_of(marked, scores) == best[1:]


def rows_of(kind):
    words = tokenizer.load("bytes+mask")
    cut = marking.windows(words, False, 16, spans=kind == "span")
    if kind == "tags":
        return [window.row for n in range(1, 5) for window in cut(tagged(*"abcdefg"[:n]))]
    texts = [("a b c", ("b", 2)), ("abc d", ("abc d", 0)), ("a b c d e f g h i", ("i", 16))]
    return [window.row for text, span in texts for window in cut(passages.answered("x:1", ["q", text], span))]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["tags", "span"])
def test_losses_and_gradients_are_those_of_whole_logits_whatever_the_parts(kind):
    model = tiny.model(vocab_size=260, outputs=3 if kind == "tags" else 2, causal=False, token_types=2, pooler=True)
    config = cfg.Config(model=model, compute=tiny.COMPUTE)
    params = decoder.initialize(config.model, jax.random.key(0))
    params |= {"head": jax.random.normal(jax.random.key(1), params["head"].shape)}
    objective, rows = objectives.marking(config, 3 if kind == "tags" else 0), rows_of(kind)

    def batch_of(rows, padding=0):
        return filled((1, len(rows) + padding), {(0, i): row for i, row in enumerate(rows)})

    def total(params, batch):
        sums = objective(decoder.merge(config.network, params), None, jax.tree.map(lambda x: x[0], batch), None)
        return sums.objective, sums

    def direct(params):
        found = marking.computed(config.network, params, batch_of(rows))
        loss, right = 0.0, 0.0
        for each, row in zip(found, rows, strict=True):
            places = np.flatnonzero(row.reads if kind == "tags" else row.weights)
            labels = row.labels[places].astype(int)
            if kind == "tags":
                loss -= jax.nn.log_softmax(each[places])[np.arange(len(places)), labels].sum()
                right += (each[places].argmax(1) == labels).sum()
            else:
                likely = jax.nn.log_softmax(each[places], axis=0)
                begin, end = (int(np.flatnonzero(labels & bit)[0]) for bit in (1, 2))
                loss -= (likely[begin, 0] + likely[end, 1]) / 2
                right += (each[places].argmax(0) == jnp.array([begin, end])).all()
        return loss, right

    mesh = make_mesh(cfg.Mesh(data=2, fsdp=4))
    with jax.set_mesh(one_device()):
        step = jax.jit(jax.grad(total, has_aux=True))
        params = jax.device_put(params, decoder.shardings(config.model, one_device()))
        (loss, right), wanted = jax.jit(jax.value_and_grad(direct, has_aux=True))(params)
        whole = step(params, batch_of(rows, padding=8 - len(rows) % 8))
        parts = [step(params, batch_of(part)) for part in (rows[:2], rows[2:])]
    with jax.set_mesh(mesh):
        placed = jax.device_put(batch_of(rows, padding=8 - len(rows) % 8), batch_sharding(mesh))
        on_mesh = jax.jit(jax.grad(total, has_aux=True))(
            jax.device_put(params, decoder.shardings(config.model, mesh)), placed
        )
    for gradient, sums in jax.device_get((whole, jax.tree.map(jnp.add, *parts), on_mesh)):
        jax.tree.map(close, gradient, wanted)
        np.testing.assert_allclose(sums.metrics["loss"], loss, rtol=1e-5)
        assert sums.metrics["accuracy"] == right
        assert sums.weight == sum(row.reads.sum() for row in rows)
    assert not np.any(wanted["pooler"])  # it is for the state of a text


@pytest.fixture(scope="module")
def encoder(folder):
    sizes = [f"--config.model.{size}" for size in SIZES]
    assert folder.run("train", "encoder", *sizes, *ENCODER, "--config.train.tokens=2048") == 0
    (folder / "tags.toml").write_text(TAGS)
    (folder / "spans.toml").write_text(SPANS)
    return folder / "encoder"


def tune(folder, name, start, task, *arguments):
    given = [f"--config.start={folder}/{start}", "--config.data.tokenizer=", f"--task={folder}/{task}.toml"]
    knobs = ["--config.align.epochs=10", "--config.optimizer.peak_lr=5e-3", "--config.train.sequence_length=16",
             "--config.train.batch_tokens=128", "--config.eval.tokens=2048"]  # fmt: skip
    return folder.run("align finetune", name, *given, *knobs, *arguments)


@pytest.mark.slow
@pytest.mark.parametrize("start", ["encoder", "base"])
def test_tags_are_learned_and_said(folder, encoder, start, capsys):
    rng, known = np.random.default_rng(0), {"a": "B-vowel", "e": "I-vowel", "b": "O", "cd": "O"}
    sentences = [rng.choice(list(known), rng.integers(1, 9)).tolist() for _ in range(60)]
    records = [{"words": words, "tags": [known[word] for word in words]} for words in sentences]
    path = folder.write("tags.jsonl", records)
    name = f"tags-{start}"
    # An encoder reads a word of bytes at its blank, so it needs longer to see which word it is.
    given = [f"--config.data.train={path}", f"--config.data.validation={path}"]
    assert tune(folder, name, start, "tags", *given, f"--config.align.epochs={10 if start == 'base' else 30}") == 0
    found = folder.lines(name, "evals.jsonl")[-1]
    assert found["f1"] == found["accuracy"] == 1 and found["eval_tokens"] == sum(len(r["words"]) for r in records)
    capsys.readouterr()
    assert cli.main(["align", "classify", str(folder / name), path, "--batch=3"]) == 0
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == records
    (folder / "tags.txt").write_text("b a e\n")
    assert cli.main(["align", "classify", str(folder / name), f"{folder}/tags.txt"]) == 0
    assert json.loads(capsys.readouterr().out) == {"words": ["b", "a", "e"], "tags": ["O", "B-vowel", "I-vowel"]}
    with pytest.raises(ValueError, match="marks the words of texts"):
        classify.load(folder / name)


@pytest.mark.slow
@pytest.mark.parametrize("start", ["encoder", "base"])
def test_spans_are_learned_and_said(folder, encoder, start, capsys):
    rng, records = np.random.default_rng(0), []
    for _ in range(60):
        text = " ".join(letter + "x" for letter in rng.permutation(list("abc")))
        records.append({"question": "q", "context": text, "answer": "bx", "start": text.index("b")})
    path = folder.write("spans.jsonl", records)
    name = f"spans-{start}"
    assert tune(folder, name, start, "spans", f"--config.data.train={path}", f"--config.data.validation={path}") == 0
    found = folder.lines(name, "evals.jsonl")[-1]
    assert found["exact_match"] == found["f1"] == found["accuracy"] == 1 and found["eval_tokens"] == 60
    capsys.readouterr()
    asked = folder.write("asked.jsonl", [{"question": "q", "context": "cx bx ax"}])
    assert cli.main(["align", "classify", str(folder / name), asked]) == 0
    assert json.loads(capsys.readouterr().out) == {"answer": "bx", "start": 3}


BAD_TAGS = {
    "2 words have 1 tags": {"words": ["a", "b"], "tags": ["O"]},
    "the tag 'X' of 'b' is none of O, B-vowel": {"words": ["b"], "tags": ["X"]},
    "a word is empty": {"words": ["b", " "], "tags": ["O", "O"]},
    "must be a list of texts": {"words": ["b"], "tags": "O"},
}
BAD_SPANS = {
    "the answer 'x' does not stand at character 2": {"question": "q", "context": "ab cd", "answer": "x", "start": 2},
    "the answer 'ab' does not stand at character 40": {"question": "q", "context": "ab", "answer": "ab", "start": 40},
    "span is '-1', and must be the number": {"question": "q", "context": "ab", "answer": "ab", "start": -1},
    "a question of 20 tokens leaves no room": {"question": "q" * 20, "context": "ab", "answer": "ab", "start": 0},
}


@pytest.mark.parametrize(("task", "wrong"), [*(("tags", w) for w in BAD_TAGS), *(("spans", w) for w in BAD_SPANS)])
def test_bad_records_are_refused_or_skipped(tmp_path, task, wrong):
    good = {"tags": {"words": ["a"], "tags": ["B-vowel"]},
            "spans": {"question": "q", "context": "ab", "answer": "ab", "start": 0}}[task]  # fmt: skip
    bad = (BAD_TAGS if task == "tags" else BAD_SPANS)[wrong]
    (tmp_path / "task.toml").write_text(TAGS if task == "tags" else SPANS)
    path = tmp_path / "bad.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in (good, bad, good)))
    found, words = tasks.load(tmp_path / "task.toml"), tokenizer.load("bytes+task")
    sizes = {"train": cfg.Train(sequence_length=16, batch_tokens=16), "eval": cfg.Eval(tokens=64)}
    with pytest.raises(ValueError, match=f"bad.jsonl:2: .*{wrong}"):
        marking.data(cfg.Config(data=cfg.Data(train=str(path), validation=str(path)), **sizes), words, found)
    skips = cfg.Data(train=str(path), validation=str(path), bad_records="skip")
    data = marking.data(cfg.Config(data=skips, **sizes), words, found)
    assert data.training.sequences == len(data.held_out) == 2


def test_a_ragged_line_is_named(tmp_path):
    path = tmp_path / "x.conll"
    path.write_text("a\tO\n\nb O\nc\n")
    (tmp_path / "task.toml").write_text(
        'words = "w"\nlabel = "t"\nlabels = ["O", "B-x"]\n'
        '[[source]]\nformat = "conll"\ncolumns = ["w", "t"]\ntest = "x.conll"\n'
    )
    task = tasks.load(tmp_path / "task.toml")
    with pytest.raises(ValueError, match=r"x.conll:4: 1 columns, and there should be 2"):
        list(tasks.made(task, str(path), "test", Skipped(refuses=False), task.passage))


MISTAKES = {
    "config.align.lm_weight=0.5 must be 0 for tags": ["--config.align.lm_weight=0.5"],
    "config.mesh.context=2 must be 1 for tags": ["--config.mesh.context=2"],
    "must hold ": ["--config.eval.tokens=8"],
}


@pytest.mark.slow
@pytest.mark.parametrize("wrong", MISTAKES)
def test_knobs_that_do_not_go_with_it(folder, encoder, wrong, capsys):
    path = folder.write("few.jsonl", [{"words": ["a"], "tags": ["B-vowel"]}] * 8)
    assert tune(folder, "wrong", "base", "tags", f"--config.data.train={path}", *MISTAKES[wrong]) == exit_codes.USAGE
    assert wrong in capsys.readouterr().err
    assert not (folder / "wrong").exists()


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ('words = "w"\nlabel = "t"\nlabels = ["O"]', "labels must be at least two"),
        ('words = "w"\nlabel = "t"\nlabels = ["O", "B-x"]\ntexts = ["{a}"]', "texts does not go with words"),
        ('texts = ["{a}"]\nspan = "{s}"', "label is missing"),
        ('texts = ["{a}"]\nlabel = "{b}"\nspan = "{s}"\nlabels = ["x", "y"]', "span is for one text or two"),
        ('texts = ["{a}"]\nlabel = "{b}"\nreferences = "c"', "references go with span"),
        (TAGS + '[[source]]\nformat = "conll"\ntest = "x"', "source.columns is missing"),
    ],
)
def test_mistakes_in_task_files(text, wrong, tmp_path):
    (tmp_path / "mine.toml").write_text(text)
    with pytest.raises(ValueError, match=wrong):
        tasks.load(tmp_path / "mine.toml")


SHIPPED = {  # texts to train on and held out, words of all tags of the second
    "squad": (4000, 500),
    "wnut17": (3394, 1009),
    "upos": (4182, 2001),
}


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_tasks_read_their_data(name):
    path, task = shared.SHARED / "data/more/finetune", tasks.find(name)
    assert task.marks and task.layout.about
    if not path.exists():
        pytest.skip("needs more/finetune of the shared development data")
    for split, count in zip(("train", "test"), SHIPPED[name], strict=True):
        found = list(tasks.made(task, str(path), split, Skipped(refuses=True), task.passage))
        assert len(found) == count
    assert {label for each in found for label in each.labels} == set(range(len(task.names) or 4))


@shared.needs_shared("data/eval/qa/xquad.en.json")
def test_xquad_is_read_as_squad():
    task = tasks.find("squad")
    place = str(shared.SHARED / "data/eval/qa/xquad.en.json")
    found = list(tasks.made(task, place, "test", Skipped(refuses=True), task.passage))
    assert len(found) == 1190 and found[0].references == ("308",) and found[0].question.startswith("How many points")
    first, last = found[0].labels.index(3), found[0].labels.index(3)
    assert found[0].answer(first, last) == "308"


def test_classes_and_marks_are_told_apart():
    assert not tasks.find("sst2").marks
    config = cfg.Config(align=cfg.Align(task="wnut17"))
    made = finetune.recipe(config)
    assert made.outputs == 13 and made.unit == "nats a word"
    assert finetune.recipe(cfg.Config(align=cfg.Align(task="squad"))).outputs == 2
