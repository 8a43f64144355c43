"""Task files: what ships loads, every format of the original releases is read, mistakes are one sentence."""

import json
from pathlib import Path

import pytest

from scaling.evaluate.scoring import metrics
from scaling.evaluate.tasks.catalogue import SHIPPED, find_tasks, shipped
from scaling.evaluate.tasks.file import load
from scaling.evaluate.tasks.kinds.choices import Choices
from scaling.evaluate.tasks.kinds.partial import Partial
from scaling.evaluate.tasks.prompts import build_requests
from tests.evaluate.tasks.alignment_stand_ins import ALIGNMENT
from tests.evaluate.tasks.stand_ins import STAND_INS, TASK, StandIn
from tests.shared import SHARED, needs_shared

EVAL = SHARED / "data" / "eval"
EVERY = [*STAND_INS, *ALIGNMENT]
CODE_BOOKS = Path(__file__).resolve().parents[3] / "experiments/in_context/tasks/code_books.toml"

# GPT-3's K (section 2.4 and the tables of Appendix H)
K = {
    "hellaswag": 20,
    "lambada": 15,
    "natural_questions": 64,
    "triviaqa": 64,
    "web_questions": 64,
    "translation": 64,
    "winograd": 7,
    "winogrande": 50,
    "piqa": 50,
    "arc": 50,
    "openbookqa": 100,
    "squad": 16,
    "boolq": 32,
    "cb": 32,
    "copa": 32,
    "rte": 32,
    "arithmetic": 50,
    "scrambling": 100,
}


def write(stand_in: StandIn, root) -> None:
    for name, text in stand_in.files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def test_shipped_tasks_have_the_papers_k():
    groups = shipped()
    assert {group: {task.few_shot for task in groups[group]} for group in K} == {group: {k} for group, k in K.items()}
    assert len(groups["arithmetic"]) == 10 and len(groups["scrambling"]) == 5


def test_a_description_and_metrics_for_every_task():
    for tasks in shipped().values():
        for task in tasks:
            assert task.about and task.metrics, task.name


@pytest.mark.parametrize("stand_in", EVERY, ids=lambda s: f"{s.task}-{next(iter(s.files)).replace('/', '-')}")
def test_formats(stand_in: StandIn, tmp_path):
    write(stand_in, tmp_path)
    (task,) = find_tasks(stand_in.task)
    # One shot, since zero-shot prompts may differ (LAMBADA, translation); the item stands behind its demonstration.
    built = build_requests(task, shots=1, data=tmp_path)
    assert len(built.items) == stand_in.count
    assert any("test items" in note for note in built.notes) == stand_in.from_test
    first = built.items[0]
    contexts = list(dict.fromkeys(option.context for option in first.options)) or [first.context]
    assert len(contexts) == len(stand_in.contexts)
    for context, expected in zip(contexts, stand_in.contexts, strict=True):
        assert context.endswith(task.prompt.separator + expected) or (first.shots == 0 and context == expected)
    completions = tuple(option.completion for option in first.options) or first.references
    assert completions == stand_in.completions
    assert first.gold == stand_in.gold


def test_every_shipped_file_task_has_a_stand_in():
    from_files = {task.group for tasks in shipped().values() for task in tasks if task.sources}
    assert from_files == {find_tasks(stand_in.task)[0].group for stand_in in EVERY}


@needs_shared("data/eval")
@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("lambada", 5153), ("piqa", 1838), ("arc_easy", 2376), ("arc_challenge", 1172), ("openbookqa", 500),
        ("winograd", 273), ("winogrande", 1267), ("boolq", 3270), ("copa", 32), ("cb", 56), ("rte", 277),
        ("sst2", 1821), ("natural_questions", 3610), ("web_questions", 2032), ("xquad_en", 1190), ("gsm8k", 1319),
        ("crows_pairs", 1508), ("winogender", 360),
        pytest.param("hellaswag", 10042, marks=pytest.mark.slow),
        pytest.param("ag_news", 7600, marks=pytest.mark.slow),
    ],
)  # fmt: skip
def test_real_files(name: str, count: int):
    (task,) = find_tasks(name)
    built = build_requests(task, shots=min(2, task.few_shot), data=EVAL)
    assert len(built.items) == count
    for request in built.items:
        assert request.context == request.context.rstrip()
        for option in request.options:
            assert option.completion[:1] in " .,;:'!?" or not option.context
            assert option.completion.strip()
        assert request.options or all(request.references)
    if isinstance(task.scoring, Choices | Partial) and task.group != "crows_pairs":
        assert len({request.gold for request in built.items}) > 1


BASE = f"""{TASK}[source.fields]
question = "q"
answer = "a"
"""


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('context = "Q: {question}"', 'contxt = "Q: {question}"', "did you mean prompt.context?"),
        ("few_shot = 2", "fewshot = 2", "fewshot is not a key of a task; did you mean few_shot?"),
        ("few_shot = 2", 'few_shot = "2"', "few_shot must be a whole number, got '2'"),
        ("few_shot = 2", "few_shot = -1", "few_shot = -1 must not be negative"),
        ("{question}", "{qestion}", "uses {qestion}, which its sources do not define; did you mean 'question'?"),
        ('gold = "{answer}"', "", "scoring.gold is missing"),
        ('kind = "choices"', 'kind = "choice"', "scoring.kind = 'choice' is unknown; did you mean 'choices'?"),
        ('gold = "{answer}"', 'gold = "{answer}"\nbeams = 2', "scoring.beams has no meaning with kind = 'choices'"),
        ('gold = "{answer}"', 'gold = "{answer}"\nchoicse = "x"', "did you mean scoring.choices?"),
        ('choices = ["no", "yes"]', "choices = 3", "scoring.choices must be text or a list of texts, got 3"),
        ('choices = ["no", "yes"]', 'choices = "answers"', "scoring.choices names the field 'answers'"),
        ('metrics = ["accuracy"]', 'metrics = ["acuracy"]', "did you mean 'accuracy'?"),
        ('format = "jsonl"', 'format = "jsnl"', "source.format = 'jsnl' is unknown; did you mean 'jsonl'?"),
        ('test = "own.jsonl"', "", "source.test is missing"),
        ('question = "q"', 'question = { form = "q" }', "question needs either 'from', a path, or"),
        ('question = "q"', 'question = { from = "q", matsh = "x" }', "did you mean source.fields.question.match?"),
        ('question = "q"', 'question = { from = "q", match = "(" }', "question.match is not a regular"),
        ('question = "q"', 'question = { from = "q", edits = ["upper"] }', "did you mean 'upper_first'?"),
        ('"Q: {question}"', '"Q: {question} "', "prompt.context ends in white space"),
        ("few_shot = 2", "sampled = 1", "sampled must be true or false, got 1"),
        ("few_shot = 2", "few_shot = " + "9" * 5000, "is not TOML"),
        ("few_shot = 2", "few_shot = true", "few_shot must be a whole number, got True"),
        ("few_shot = 2", "sampled = true", "sampled = true needs at least two [variants.NAME]"),
        ('gold = "{answer}"', 'gold = "{answer}"\nnormalisation = "squad"', "did you mean 'sum'"),
        ("few_shot = 2", f"few_shot = {'1' * 5000}", "is not TOML"),
        ("few_shot = 2", 'measures = "bais"', "measures = 'bais' is unknown; did you mean 'bias'?"),
        ("[prompt]", "[prompt", "is not TOML"),
        ("few_shot = 2", "few_shot = 2\n[variants.'a/b']", "variants.'a/b' must be letters, digits"),
        ("[[source]]", "[source]", "source must be written [[source]]"),
        ('gold = "{answer}"', 'gold = "{answer}"\nnormalisation = "unconditional"', "answer_context belongs to"),
    ],
)  # fmt: skip
def test_mistakes_in_a_task_file(old: str, new: str, said: str, tmp_path):
    assert old in BASE
    path = tmp_path / "own.toml"
    path.write_text(BASE.replace(old, new))
    with pytest.raises(ValueError) as caught:
        load(path)
    assert str(path) in str(caught.value) and said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_variants_that_are_a_sample_and_tasks_that_measure_bias(tmp_path):
    path = tmp_path / "own.toml"
    path.write_text(f'sampled = true\nmeasures = "bias"\n{BASE}\n[variants]\none.key = "1"\ntwo.key = "2"\n')
    assert [(task.name, task.sampled, task.measures) for task in load(path)] == [
        ("one", True, "bias"),
        ("two", True, "bias"),
    ]
    path.write_text(BASE)
    assert [(task.sampled, task.measures) for task in load(path)] == [(False, "ability")]
    assert not any(task.sampled for tasks in shipped().values() for task in tasks)
    (books,) = {task.sampled for task in load(CODE_BOOKS)}
    assert books


def test_a_users_own_task(tmp_path):
    """Also as an editor on Windows saves it, and with what a desktop leaves beside it."""
    (tmp_path / "own.toml").write_text("\ufeff" + BASE)
    (tmp_path / "own.jsonl").write_text('\ufeff{"q": "Is {it}?", "a": 1}\n\n{"q": "Why?", "a": 0}\n')
    (task,) = find_tasks(str(tmp_path / "own.toml"))
    first, second = build_requests(task, data=tmp_path).items
    assert first.context == "Q: Is {it}?" and first.target == " yes"
    assert second.gold == 0


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"q": "x", "a": 0', "own.jsonl:2: not JSON"),
        ('{"q": "x", "a": 0, "n": %s}' % ("9" * 5000), "own.jsonl:2 has a whole number of more than"),
        ('["q"]', "own.jsonl:2: a JSON object was expected"),
        ('{"q": "x"}', "own.jsonl:2: answer: the record has no 'a'; there are 'q'"),
        ('{"q": {"x": 1}, "a": 0}', "own.jsonl:2: question must be text"),
        ('{"q": "x", "a": 2}', "own.jsonl:2: the answer is choice 2, from 0, of only 2"),
        ('{"q": "x", "a": "b"}', "own.jsonl:2: the answer 'b' must be the number of a choice"),
        ('{"q": "x", "a": "\u00b2"}', "own.jsonl:2: the answer '\u00b2' must be the number of a choice"),
        ('{"q": "x", "a": 0, "n": ' + "1" * 5000 + "}", "own.jsonl:2 has a whole number of more than 4300 digits"),
    ],
)
def test_malformed_records_name_file_and_line(line: str, said: str, tmp_path):
    (tmp_path / "own.toml").write_text(BASE)
    (tmp_path / "own.jsonl").write_text('{"q": "Why?", "a": 0}\n' + line + "\n")
    with pytest.raises(ValueError) as caught:
        build_requests(load(tmp_path / "own.toml")[0], data=tmp_path)
    assert said in str(caught.value)


CHOICES = 'kind = "choices"\nchoices = ["no", "yes"]\ngold = "{answer}"'


@pytest.mark.parametrize(
    ("scoring", "metric", "record", "said"),
    [
        ('kind = "choices"\nchoices = "c"\ngold = "0"', "accuracy", {"c": ["no", " "]}, "1 of scoring.choices"),
        ('kind = "choices"\nchoices = ["{c}", "no"]\ngold = "0"', "accuracy", {"c": ""}, "0 of scoring.choices"),
        (
            'kind = "partial"\ncontexts = "c"\ncompletion = "{e}"\ngold = "0"',
            "accuracy",
            {"c": ["", "b"], "e": "."},
            "scoring.contexts",
        ),
        (
            'kind = "partial"\ncontexts = "c"\ncompletion = "{e}"\ngold = "0"',
            "accuracy",
            {"c": ["a", "b"], "e": ""},
            "scoring.completion",
        ),
        ('kind = "completion"\ntarget = "{c}"', "accuracy", {"c": ""}, "scoring.target"),
        ('kind = "free_form"\ntarget = "{c}"', "exact", {"c": ""}, "scoring.target"),
        ('kind = "free_form"\ntarget = "x"\nreferences = "c"', "exact", {"c": ["", " "]}, "'c' holds no accepted"),
        (
            'kind = "free_form"\ntarget = "x"\nreferences = "c"',
            "exact_number",
            {"c": ["1", "two"]},
            "'two' is no number",
        ),
    ],
)
def test_texts_that_cannot_be_scored_name_file_and_line(scoring: str, metric: str, record: dict, said: str, tmp_path):
    (tmp_path / "own.toml").write_text(BASE.replace(CHOICES, scoring).replace('["accuracy"]', f'["{metric}"]'))
    fields = "".join(f"{name} = '{name}'\n" for name in record)
    (tmp_path / "own.toml").write_text((tmp_path / "own.toml").read_text() + fields)
    (tmp_path / "own.jsonl").write_text(json.dumps({"q": "Why?", "a": 0} | record) + "\n")
    with pytest.raises(ValueError, match=r"own\.jsonl:1: ") as caught:
        build_requests(load(tmp_path / "own.toml")[0], data=tmp_path)
    assert said in str(caught.value)


def test_what_is_cut_from_an_answer_is_cut_from_the_references(tmp_path):
    scoring = 'kind = "free_form"\ntarget = "x"\nreferences = "c"\nremove = "[,$]"'
    text = BASE.replace(CHOICES, scoring).replace('["accuracy"]', '["exact"]')
    (tmp_path / "own.toml").write_text(f"{text}c = 'c'\n")
    (tmp_path / "own.jsonl").write_text('{"q": "Why?", "a": 0, "c": ["$1,000", "1000", ""]}\n')
    assert build_requests(load(tmp_path / "own.toml")[0], data=tmp_path).items[0].references == ("1000",)


@pytest.mark.parametrize("said", ["$1,000.00", "1000", "+1 000 apples.", "1,000\n"])
def test_gsm8k_compares_numbers(said: str, tmp_path):
    write(next(s for s in STAND_INS if s.task == "gsm8k"), tmp_path)
    (task,) = find_tasks("gsm8k")
    references = build_requests(task, data=tmp_path).items[1].references
    answer = metrics.extract(f"So it is 7.\n#### {said}", task.scoring.extract, task.scoring.remove)
    assert task.metrics == ("exact_number",) and metrics.exact_number(answer, references) == 1
    assert metrics.exact_number(metrics.extract("1000", task.scoring.extract, ""), references) == 0  # no ####


def test_references_of_triviaqa_are_all_that_its_file_has(tmp_path):
    answer = {"Value": "Sinclair Lewis", "Aliases": ["Lewis"], "NormalizedAliases": ["sinclair lewis", "lewis"]}
    records = [{"Question": "Who?", "Answer": answer | more} for more in ({}, {"HumanAnswers": ["H. S. Lewis"]})]
    records.append({"Question": "Who?", "Answer": {"Value": "Eve"}})
    (tmp_path / "wikipedia-dev.json").write_text(json.dumps({"Data": records}))
    (task,) = find_tasks("triviaqa")
    assert task.scoring.normalisation == "triviaqa"
    known = ("Sinclair Lewis", "Lewis", "sinclair lewis", "lewis")
    assert [item.references for item in build_requests(task, data=tmp_path).items] == [
        known,
        (*known, "H. S. Lewis"),
        ("Eve",),
    ]


def test_a_long_integer_in_json_names_file_and_line(tmp_path):
    text = json.dumps({"Data": [{"Question": "Who?", "Answer": {"Value": "Eve"}, "n": "?"}]}, indent=1)
    (tmp_path / "wikipedia-dev.json").write_text(text.replace('"?"', "1" * 5000))
    with pytest.raises(ValueError, match=r"wikipedia-dev\.json .*4300 digits in line 8"):
        build_requests(find_tasks("triviaqa")[0], data=tmp_path)


def test_finding_tasks(tmp_path):
    assert [task.name for task in find_tasks("arc, boolq")] == ["arc_easy", "arc_challenge", "boolq"]
    assert [task.name for task in find_tasks("arc,arc_easy")] == ["arc_easy", "arc_challenge"]
    with pytest.raises(ValueError, match="lambda is no task; did you mean lambada"):
        find_tasks("lambda")
    with pytest.raises(ValueError, match="no task is named"):
        find_tasks(",")
    with pytest.raises(FileNotFoundError, match="no such task file"):
        find_tasks(str(tmp_path / "absent.toml"))
    (tmp_path / "boolq.toml").write_text(BASE)
    with pytest.raises(ValueError, match="two tasks are named boolq"):
        find_tasks(f"boolq,{tmp_path / 'boolq.toml'}")


def test_missing_data(tmp_path):
    (task,) = find_tasks("boolq")
    with pytest.raises(ValueError, match="--data=DIR"):
        build_requests(task)
    with pytest.raises(FileNotFoundError, match=r"does not hold BoolQ/val\.jsonl or"):
        build_requests(task, data=tmp_path)
    with pytest.raises(FileNotFoundError, match="is no directory"):
        build_requests(task, data=tmp_path / "absent")


def test_a_directory_with_the_name_of_the_release(tmp_path):
    write(next(s for s in STAND_INS if "BoolQ/val.jsonl" in s.files), tmp_path)
    assert len(build_requests(find_tasks("boolq")[0], data=tmp_path / "BoolQ").items) == 3


def test_aligned_files_of_different_length(tmp_path):
    stand_in = next(s for s in STAND_INS if "test.fr-en.fr" in s.files)
    write(stand_in, tmp_path)
    (task,) = find_tasks("translation_fr_en")
    zero = build_requests(task, data=tmp_path).items[0]
    assert zero.context == "Q: What is the English translation of Le chat. A:"
    for text, said in (("The cat.\n", "has fewer lines"), ("a\n" * 4, "has more lines")):
        (tmp_path / "test.fr-en.en").write_text(text)
        with pytest.raises(ValueError, match=said):
            build_requests(task, data=tmp_path)


def test_files_that_are_damaged(tmp_path):
    (task,) = find_tasks("piqa")
    (tmp_path / "piqa.jsonl.gz").write_bytes(b"\x1f\x8bno")
    with pytest.raises(ValueError, match="damaged"):
        build_requests(task, data=tmp_path)
    (tmp_path / "piqa.jsonl.gz").unlink()
    (tmp_path / "piqa.jsonl").write_bytes(b'{"query": "\xff"}')
    with pytest.raises(ValueError, match="not UTF-8"):
        build_requests(task, data=tmp_path)
    (tmp_path / "piqa.jsonl").write_text("")
    with pytest.raises(ValueError, match="holds no items"):
        build_requests(task, data=tmp_path)


def test_nothing_here_imports_jax():
    import subprocess
    import sys

    root = SHIPPED.parents[2]
    paths = [*(root / "evaluate/tasks").rglob("*.py"), root / "evaluate/scoring/metrics.py"]
    paths += [root / "evaluate/contamination/search.py", root / "evaluate/bias/words.py"]
    names = [".".join(path.relative_to(root.parent).with_suffix("").parts) for path in paths]
    assert "scaling.evaluate.tasks.prompts" in names
    code = f"import sys, {', '.join(names)}; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
