"""Tasks that measure alignment: their records, dialogues, and mistakes in either."""

import itertools

import pytest

from scaling.data import tokenizer
from scaling.data.chat.template import Chat
from scaling.evaluate.tasks.catalogue import find_tasks
from scaling.evaluate.tasks.file import load
from scaling.evaluate.tasks.prompts import Room, build_requests
from tests.evaluate.tasks.alignment_stand_ins import BBQ, HHH, IFEVAL, TRUTHFUL, bbq
from tests.evaluate.tasks.stand_ins import TASK, jsonl
from tests.shared import SHARED, needs_shared

WORDS = tokenizer.load("bytes+chat")
CHAT = Chat(WORDS)


def frame(turns):
    roles = itertools.cycle(("user", "assistant"))
    return CHAT.prompt([{"role": role, "content": text} for role, text in zip(roles, turns, strict=False)])


def room(tokens=10_000):
    return Room(WORDS, tokens, frame)


def requests(name, folder, file, text, shots=0, **options):
    (folder / file).write_text(text)
    (task,) = find_tasks(name)
    return build_requests(task, shots, data=folder, **options)


def test_what_the_choices_of_bbq_mean(tmp_path):
    records = [bbq(0), bbq(1, polarity="nonneg"), bbq(2), bbq(3)]
    records[2]["additional_metadata"] = {"stereotyped_groups": ["young"]}
    records[3]["answer_info"]["ans1"] = ["Kim", "F-Old"]
    built = requests("bbq_ambiguous", tmp_path, "bbq_sample.jsonl", jsonl(*records))
    assert [request.kept for request in built.items] == [
        ("other", "biased", "unknown"),
        ("biased", "other", "unknown"),
        ("", "", "unknown"),  # nobody is of the group
        ("other", "biased", "unknown"),  # a group of two parts
    ]


def test_the_conditions_of_bbq_and_the_subsets_of_hhh_are_tasks(tmp_path):
    built = requests("bbq_disambiguated", tmp_path, "bbq_sample.jsonl", jsonl(*BBQ))
    assert [(r.gold, r.metadata) for r in built.items] == [(0, {"category": "Age"})]
    assert len(requests("hhh_honest", tmp_path, "hhh_alignment.jsonl", jsonl(*HHH)).items) == 1


def test_a_demonstration_is_a_turn_of_user_and_assistant(tmp_path):
    built = requests("truthfulqa", tmp_path, "TruthfulQA.csv", TRUTHFUL, 2, room=room())
    turns = built.items[0].turns
    assert turns[-1] == "Why?" and sorted(turns[:-1:2]) == ["Where?", "Who?"]
    assert dict(zip(turns[0:4:2], turns[1:4:2], strict=True)) == {"Where?": "Here.", "Who?": "Ann."}
    assert requests("truthfulqa", tmp_path, "TruthfulQA.csv", TRUTHFUL, 2).items[0].turns == ()


def test_a_query_that_is_a_dialogue_becomes_its_turns(tmp_path):
    built = requests("hhh_helpful", tmp_path, "hhh_alignment.jsonl", jsonl(*HHH), room=room())
    assert [request.turns for request in built.items] == [("Hi",), ("One?", "Two.", "Three?"), ("Bye",)]


def test_demonstrations_are_left_off_until_the_framed_dialogue_fits(tmp_path):
    whole = requests("truthfulqa", tmp_path, "TruthfulQA.csv", TRUTHFUL, 2, room=room()).items[1]
    size = len(frame(whole.turns)) + max(len(WORDS.encode(o.completion[1:])) for o in whole.options)
    for tokens, kept in ((size, 2), (size - 1, 1)):
        built = requests("truthfulqa", tmp_path, "TruthfulQA.csv", TRUTHFUL, 2, room=room(tokens))
        assert built.items[1].shots == kept


def test_the_description_stands_before_the_first_turn(tmp_path):
    text = TASK.replace('context = "Q: {question}"', 'description = "Say."\ncontext = "{question}"')
    (tmp_path / "own.toml").write_text(text)
    (tmp_path / "own.jsonl").write_text(jsonl({"question": "A?", "answer": "1"}, {"question": "B?", "answer": "0"}))
    (task,) = load(tmp_path / "own.toml")
    assert build_requests(task, 0, data=tmp_path, room=room()).items[0].turns == ("Say.\n\nA?",)
    assert build_requests(task, 1, data=tmp_path, room=room()).items[0].turns == ("Say.\n\nB?", "no", "A?")


@pytest.mark.parametrize("name", ["winograd", "text", "crows_pairs"])
def test_what_no_user_would_say_is_refused_in_a_dialogue(name, tmp_path):
    with pytest.raises(ValueError, match=rf"task {name} .*; evaluate it without --chat"):
        build_requests(find_tasks(name)[0], data=tmp_path, room=room())


def test_without_answers_to_show_there_are_no_demonstrations(tmp_path):
    built = requests("ifeval", tmp_path, "ifeval_input_data.jsonl", jsonl(*IFEVAL), shots=3)
    assert built.shots == 0 and [request.context for request in built.items] == ["Write.", "Write more.", "End."]


def test_an_answer_has_at_most_half_of_the_context(tmp_path):
    built = requests("ifeval", tmp_path, "ifeval_input_data.jsonl", jsonl(*IFEVAL), room=Room(WORDS, 20))
    assert [request.fits for request in built.items] == [True, False, True]
    assert "ifeval: answers have at most 10 of 1,280 tokens, half of the context" in built.notes


@pytest.mark.parametrize(
    ("name", "file", "text", "said"),
    [
        (
            "truthfulqa",
            "TruthfulQA.csv",
            TRUTHFUL.replace("Because,", "So,", 1),
            ":2: the best answer 'So.' is none of",
        ),
        ("truthfulqa", "TruthfulQA.csv", TRUTHFUL.replace("Bob", ";"), ":3: there is no false answer"),
        ("truthfulqa_generated", "TruthfulQA.csv", TRUTHFUL.replace("Bob", ";"), ":3: 'false' holds no wrong answer"),
        ("bbq_ambiguous", "bbq_sample.jsonl", jsonl(bbq(0, polarity="pos")), ":1: the polarity 'pos' must be neg or"),
        (
            "ifeval",
            "ifeval_input_data.jsonl",
            jsonl(IFEVAL[0], IFEVAL[1] | {"kwargs": [{}]}),
            ":2: 2 instructions with 1 tables of arguments",
        ),
        (
            "ifeval",
            "ifeval_input_data.jsonl",
            jsonl(IFEVAL[0] | {"instruction_id_list": ["punctuation:comma"]}),
            ":1: 'punctuation:comma' is no constraint",
        ),
        (
            "ifeval",
            "ifeval_input_data.jsonl",
            jsonl(IFEVAL[2] | {"kwargs": [{}]}),
            ":1: startend:end_checker takes end_phrase; end_phrase is missing",
        ),
        (
            "ifeval",
            "ifeval_input_data.jsonl",
            jsonl(IFEVAL[2] | {"kwargs": [3]}),
            ":1: startend:end_checker: its arguments must be a table, not 3",
        ),
    ],
)
def test_mistakes_in_records_are_named_with_their_line(name, file, text, said, tmp_path):
    with pytest.raises(ValueError, match=f"{file}{said}"):
        requests(name, tmp_path, file, text)


def test_turns_that_do_not_end_with_the_user_are_named_with_their_line(tmp_path):
    records = [*HHH, HHH[0] | {"query": "One?\n\nAssistant: Two."}]
    with pytest.raises(ValueError, match=r"hhh_alignment.jsonl:5: the turns of .* must be an odd number"):
        requests("hhh_helpful", tmp_path, "hhh_alignment.jsonl", jsonl(*records), room=room())


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('context = "Q: {question}"', 'context = "Q: {question}"\nturns = "x"', "prompt.turns has no meaning"),
        ("[scoring]", '[chat]\nturns = "("\n[scoring]', "chat.turns is not a regular expression"),
        ("[scoring]", '[chat]\ncontext = "{wuestion}"\n[scoring]', "chat.context uses {wuestion}"),
        ('kind = "choices"', 'kind = "rated"\nlabel = "x"\nsamples = 0', "samples and scoring.max_tokens must be"),
        ('kind = "choices"', 'kind = "rated"\nlabel = "x"\nsamples = 2\ntemperature = 0', "would be equal"),
        ('kind = "choices"', 'kind = "rated"\nlabel = "x"\ntop_p = 0', r"top_p must be in \(0, 1\]"),
        ('kind = "choices"', 'kind = "rated"', "scoring.label is missing; kind = 'rated' needs it"),
    ],
)
def test_mistakes_in_a_task_file(old, new, said, tmp_path):
    text = TASK.replace(old, new)
    if "rated" in new:
        text = text.replace('choices = ["no", "yes"]\ngold = "{answer}"\n', "").replace("accuracy", "truthful")
    (tmp_path / "own.toml").write_text(text + '[source.fields]\nquestion = "q"\nanswer = "a"\n')
    with pytest.raises(ValueError, match=said):
        load(tmp_path / "own.toml")


@needs_shared("data/more/alignment")
def test_the_real_files():
    counts = {
        "truthfulqa": 817, "truthfulqa_generated": 817, "truthfulqa_judged": 817, "hhh_helpful": 59, "hhh_honest": 61,
        "hhh_harmless": 58, "hhh_other": 43, "bbq_ambiguous": 1200, "bbq_disambiguated": 1200, "toxicity": 100,
        "ifeval": 541,
    }  # fmt: skip
    for name, count in counts.items():
        (task,) = find_tasks(name)
        for space in (None, room()):
            built = build_requests(task, data=SHARED / "data/more/alignment", room=space)
            assert len(built.items) == count and all(request.context for request in built.items)
        if name.startswith("bbq"):
            assert {tuple(sorted(request.kept)) for request in built.items} == {("biased", "other", "unknown")}


def test_what_the_template_refuses_is_named_with_its_line(tmp_path):
    chat = Chat(
        WORDS, WORDS.chat_template + "{% if messages[0].content == 'Who?' %}{{ raise_exception('no') }}{% endif %}"
    )

    def strict(turns):
        return chat.prompt([{"role": "user", "content": text} for text in turns])

    with pytest.raises(ValueError, match=r"TruthfulQA.csv:3: the chat template refuses the dialogue: no"):
        requests("truthfulqa", tmp_path, "TruthfulQA.csv", TRUTHFUL, room=Room(WORDS, 10_000, strict))
