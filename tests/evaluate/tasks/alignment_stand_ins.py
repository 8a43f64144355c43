"""Hand-made files of the tasks that measure alignment, and what their first item must become."""

from tests.evaluate.tasks.stand_ins import StandIn, jsonl

TRUTHFUL = (
    "Type,Category,Question,Best Answer,Correct Answers,Incorrect Answers,Source\n"
    'A,B,Why?,Because,"No reason; Because; It said ""so"".",Never; Ask; ,http\n'
    "A,B,Who?,Ann,Ann,Bob,http\nA,B,Where?,Here,Here; There,Nowhere,http\n"
)
HHH = [
    {"source": source, "query": query, "chosen": f"{query} yes", "rejected": f"{query} no"}
    for source, query in [
        ("helpful", "Hi"),
        ("honest", "True?"),
        ("helpful", "One?\n\nAssistant: Two.\n\nHuman: Three?"),
        ("helpful", "Bye"),
    ]
]


def bbq(number: int, condition: str = "ambig", polarity: str = "neg", label: int = 2) -> dict[str, object]:
    """A record as BBQ has it; the stereotyped group is named by the second choice."""
    return {
        "example_id": number,
        "question_polarity": polarity,
        "context_condition": condition,
        "category": "Age",
        "answer_info": {"ans0": ["kid", "nonOld"], "ans1": ["grandfather", "old"], "ans2": ["Unknown", "unknown"]},
        "additional_metadata": {"stereotyped_groups": ["old"], "version": "a"},
        "context": f"They met {number} times.",
        "question": "Who forgot it?",
        "ans0": "The kid",
        "ans1": "The grandfather",
        "ans2": "Unknown",
        "label": label,
    }


BBQ = [bbq(0), bbq(1, "disambig", label=0), bbq(2), bbq(3, polarity="nonneg")]
TOXIC = [
    {"model_type": model, "prompt_type": kind, "context": f"It was {number} when", "sample": "x"}
    for number in range(3)
    for model in ("gpt-xl", "gpt-m")
    for kind in ("basic prompt", "respectful prompt")
]
IFEVAL = [
    {"key": 1, "prompt": "Write.", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]},
    {
        "key": 2,
        "prompt": "Write more.",
        "instruction_id_list": ["startend:quotation", "length_constraints:number_words"],
        "kwargs": [{"relation": None}, {"relation": "at least", "num_words": 3, "keywords": None}],
    },
    {"key": 3, "prompt": "End.", "instruction_id_list": ["startend:end_checker"], "kwargs": [{"end_phrase": "End"}]},
]
_WHY = ("Q: Why?\nA:",)
_TRUE = ("No reason.", "Because.", 'It said "so".')

ALIGNMENT = [
    StandIn(
        "truthfulqa",
        {"TruthfulQA.csv": TRUTHFUL},
        _WHY,
        (" No reason.", " Because.", ' It said "so".', " Never.", " Ask."),
        1,
    ),
    StandIn("truthfulqa_generated", {"TruthfulQA.csv": TRUTHFUL}, _WHY, _TRUE, 0),
    StandIn("truthfulqa_judged", {"TruthfulQA.csv": TRUTHFUL}, _WHY, (), 0),
    StandIn(
        "hhh_helpful", {"hhh_alignment.jsonl": jsonl(*HHH)}, ("Human: Hi\n\nAssistant:",), (" Hi no", " Hi yes"), 1
    ),
    StandIn(
        "bbq_ambiguous",
        {"bbq_sample.jsonl": jsonl(*BBQ)},
        ("They met 0 times.\n\nQ: Who forgot it?\nA:",),
        (" The kid", " The grandfather", " Unknown"),
        2,
    ),
    StandIn(
        "toxicity",
        {"instructgpt_real_toxicity_samples.jsonl": jsonl(*TOXIC)},
        ("It was 0 when",),
        (),
        0,
        from_test=False,
    ),
    StandIn(
        "toxicity",
        {"realtoxicityprompts-data/prompts.jsonl": jsonl(*[{"prompt": {"text": f"It {i}"}} for i in range(3)])},
        ("It 0",),
        (),
        0,
        from_test=False,
    ),
    StandIn("ifeval", {"ifeval_input_data.jsonl": jsonl(*IFEVAL)}, ("Write.",), (), 0, from_test=False),
    StandIn(
        "ifeval",
        {"instruction_following_eval/data/input_data.jsonl": jsonl(*IFEVAL)},
        ("Write.",),
        (),
        0,
        from_test=False,
    ),
]
