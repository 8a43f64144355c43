"""Small hand-made files in the formats of the original releases, and what their first item must become."""

import dataclasses
import json


@dataclasses.dataclass(frozen=True)
class StandIn:
    task: str
    files: dict[str, str]
    contexts: tuple[str, ...]  # of the options of item 0; one if they share it
    completions: tuple[str, ...]  # of its options; of free_form: its references
    gold: int
    count: int = 3
    from_test: bool = True


def jsonl(*records: object) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


# A task of one's own, without the table that says which keys its fields are.
TASK = """
few_shot = 2
metrics = ["accuracy"]
[prompt]
context = "Q: {question}"
[scoring]
kind = "choices"
choices = ["no", "yes"]
gold = "{answer}"
[[source]]
format = "jsonl"
test = "own.jsonl"
"""

PASSAGE = "Tom took his boat to the lake. He rowed all day in the"
LAMBADA = f"{PASSAGE} boat\nAnn went to see the cat and fed the cat\nA bird sang and I heard the bird\n"
ARC = [
    {
        "id": str(i),
        "question": {"stem": stem, "choices": [{"text": t, "label": c} for t, c in zip(texts, labels, strict=False)]},
        "answerKey": key,
    }
    for i, (stem, texts, labels, key) in enumerate(
        [
            ("What do plants need?", ["light", "sand"], "AB", "A"),
            ("What is ice?", ["fire", "water", "air"], "123", "2"),
            ("What falls?", ["rain", "stars", "cats", "trees", "rocks"], "ABCDE", "E"),
        ]
    )
]
OPENBOOK = [
    {
        "question": {"stem": s, "choices": [{"text": t, "label": c} for t, c in zip("wxyz", "ABCD", strict=True)]},
        "answerKey": k,
    }
    for s, k in [("The sun is", "B"), ("A dog is", "A"), ("A tree is", "D")]
]
BOOLQ = [("is water wet", "Water is wet.", True), ("is fire cold", "Fire is hot.", False), ("is it so?", "So.", True)]
NLI = [("It rained.", "It was wet.", "entailment"), ("A.", "B.", "contradiction"), ("C.", "D.", "neutral")]
COPA = [
    {"premise": "The glass fell.", "choice1": "I pushed it.", "choice2": "He slept.", "question": "cause", "label": 0},
    {"premise": "It rained.", "choice1": "It was dry.", "choice2": "It was wet.", "question": "effect", "label": 1},
    {"premise": "He ran.", "choice1": "He was late.", "choice2": "He was old.", "question": "cause", "label": 0},
]
GSM = [("How many?", "It is 1 + 1 = <<1+1=2>>2.\n#### 2"), ("And now?", "#### 1,000"), ("Below?", "#### -5")]
GSM_RECORDS = [{"question": q, "answer": a} for q, a in GSM]
WINOGRANDE = [
    {"qID": "1", "sentence": "Ann helped Eve because _ was kind.", "option1": "Ann", "option2": "Eve", "answer": "1"},
    {"qID": "2", "sentence": "Bob met Jim at _'s house.", "option1": "Bob", "option2": "Jim", "answer": "2"},
    {"qID": "3", "sentence": "_ saw Sue.", "option1": "Al", "option2": "Sue", "answer": "1"},
]
WSC = "".join(
    f"<schema><text><txt1>{a}</txt1><pron>{p}</pron><txt2>{b}</txt2></text><quote><quote1/></quote>"
    f"<answers><answer>{x}</answer><answer>{y}</answer></answers><correctAnswer>{c}</correctAnswer></schema>"
    for a, p, b, x, y, c in [
        ("The dog chased the cat because", "it", "was fast.", "The dog", "The cat", "A"),
        ("Jim yelled at Kevin because", "he", "was upset.", "Jim", "Kevin", " A. "),
        ("The ball broke the table because", "it", "was made of wood.", "the ball", "the table", "B."),
    ]
)
TRIVIA = [
    {"Question": f"Who was {n}?", "QuestionId": n, "Answer": {"Value": n.upper(), "Aliases": [n.upper(), n, n]}}
    for n in ("ann", "bob", "eve")
]
WEB = [{"qId": str(i), "answers": [a, "x"], "qText": f"where is {a}?"} for i, a in enumerate(("rome", "oslo", "bonn"))]
WEB_OLD = [
    {"utterance": "who is tim", "targetValue": '(list (description "Tim Cook") (description Tim))'},
    {"utterance": "what is it", "targetValue": "(list (description It))"},
    {"utterance": "why?", "targetValue": "(list (description Because))"},
]
SQUAD = {
    "data": [
        {
            "title": "Rain",
            "paragraphs": [
                {
                    "context": "Rain is water.",
                    "qas": [
                        {"id": "1", "question": "What is rain?", "answers": [{"text": "water"}, {"text": "Water"}]},
                        {"id": "2", "question": "What is snow?", "answers": [], "is_impossible": True},
                    ],
                },
                {"context": "It falls.", "qas": [{"id": "3", "question": "Does it?", "answers": [{"text": "yes"}]}]},
            ],
        }
    ]
}
SQUAD_V1 = json.loads(json.dumps(SQUAD))
del SQUAD_V1["data"][0]["paragraphs"][0]["qas"][1]
RAIN = "Title: Rain\n\nBackground: Rain is water.\n\nQ: What is rain?\n\nA:"
NQ = [{"question": "who was first", "answer": ["Adam", "Ann"]}, {"question": "where", "answer": ["here"]}]
CROWS = (
    ",sent_more,sent_less,stereo_antistereo,bias_type\n"
    '0,"They are, well, loud.","We are, well, loud.",stereo,race-color\n'
    "1,Old men forget.,Young men forget.,antistereo,age\n2,A b.,A c.,stereo,age\n"
)
WINOGENDER = (
    "sentid\tsentence\n"
    "baker.guest.1.male.txt\tThe baker told the guest that he could pay.\n"
    'baker.someone.1.male.txt\tThe baker told someone that he could "pay.\n'
    "baker.guest.0.neutral.txt\tThe baker told the guest that their oven was hot.\n"
    "baker.guest.0.female.txt\tThe baker told the guest that she had finished.\n"
)
ROOM = ("The dog chased the cat because the dog", "The dog chased the cat because the cat")

BOOLQ_CONTEXT = "Water is wet.\nquestion: is water wet?\nanswer:"
LAMBADA_CONTEXT = f"{PASSAGE} ____. ->"
TOPICS = (" World", " Sports", " Business", " Technology")

STAND_INS = [
    StandIn(
        "lambada",
        {"lambada_openai.jsonl": jsonl(*[{"context": PASSAGE, "continuation": w} for w in ("boat", "a", "b")])},
        (LAMBADA_CONTEXT,),
        (" boat",),
        0,
    ),
    StandIn(
        "lambada",
        {"lambada_test_plain_text.txt": LAMBADA, "lambada_development_plain_text.txt": LAMBADA},
        (LAMBADA_CONTEXT,),
        (" boat",),
        0,
        from_test=False,
    ),
    StandIn(
        "lambada",
        {"lambada_test.jsonl": jsonl(*[{"text": t} for t in LAMBADA.splitlines()])},
        (LAMBADA_CONTEXT,),
        (" boat",),
        0,
    ),
    StandIn(
        "hellaswag",
        {
            "hellaswag_val.jsonl": jsonl(
                *[
                    {"activity_label": "Baking", "ctx": f"She {i}", "endings": list("abcd"), "label": i}
                    for i in range(3)
                ]
            )
        },
        ("Baking: She 0",),
        (" a", " b", " c", " d"),
        0,
    ),
    StandIn(
        "hellaswag",
        {"hellaswag_val_full.txt": "Baking: She\n2\na\nb\nc\nd\n" * 3},
        ("Baking: She",),
        (" a", " b", " c", " d"),
        2,
    ),
    StandIn(
        "piqa",
        {
            "piqa/valid.jsonl": jsonl(*[{"goal": f"Cut {i}", "sol1": "saw", "sol2": "wish"} for i in range(3)]),
            "piqa/valid-labels.lst": "1\n0\n1\n",
        },
        ("Cut 0",),
        (" saw", " wish"),
        1,
    ),
    StandIn(
        "piqa",
        {"piqa.jsonl": jsonl(*[{"query": "Question: Cut it\n", "choices": ["saw", "wish"], "gold": 0}] * 3)},
        ("Cut it",),
        (" saw", " wish"),
        0,
    ),
    StandIn(
        "arc_easy",
        {"ARC-Easy-Test.jsonl": jsonl(*ARC)},
        ("Question: What do plants need?\nAnswer:",),
        (" light", " sand"),
        0,
    ),
    StandIn(
        "arc_challenge",
        {"ARC-Challenge-Test.jsonl": jsonl(*ARC[1:], ARC[0]), "ARC-Challenge-Train.jsonl": jsonl(*ARC)},
        ("Question: What is ice?\nAnswer:",),
        (" fire", " water", " air"),
        1,
        from_test=False,
    ),
    StandIn(
        "arc_easy",
        {"arc_easy.jsonl": jsonl(*[{"query": "Question: Why?", "choices": ["so", "no"], "gold": 1}] * 3)},
        ("Question: Why?\nAnswer:",),
        (" so", " no"),
        1,
    ),
    StandIn(
        "openbookqa",
        {"OpenBookQA-V1-Sep2018/Data/Main/test.jsonl": jsonl(*OPENBOOK)},
        ("The sun is",),
        (" w", " x", " y", " z"),
        1,
    ),
    StandIn(
        "openbookqa",
        {"openbook_qa.jsonl": jsonl(*[{"query": "The sun is", "choices": ["hot", "wet"], "gold": 0}] * 3)},
        ("The sun is",),
        (" hot", " wet"),
        0,
    ),
    StandIn(
        "winograd",
        {"winograd_wsc.jsonl": jsonl(*[{"context_options": list(ROOM), "continuation": "was fast.", "gold": 0}] * 3)},
        ROOM,
        (" was fast.",) * 2,
        0,
    ),
    StandIn("winograd", {"WSCollection.xml": f"<collection>{WSC}</collection>"}, ROOM, (" was fast.",) * 2, 0),
    StandIn(
        "winogrande",
        {"winogrande_1.1/dev.jsonl": jsonl(*WINOGRANDE)},
        ("Ann helped Eve because Ann", "Ann helped Eve because Eve"),
        (" was kind.",) * 2,
        0,
    ),
    StandIn(
        "winogrande",
        {"winogrande_1.1/dev.jsonl": jsonl(*WINOGRANDE[1:], WINOGRANDE[0])},
        ("Bob met Jim at Bob", "Bob met Jim at Jim"),
        ("'s house.",) * 2,
        1,
    ),
    StandIn(
        "winogrande",
        {"winogrande.jsonl": jsonl(*[{"context_options": list(ROOM), "continuation": ", fast.", "gold": 1}] * 3)},
        ROOM,
        (", fast.",) * 2,
        1,
    ),
    StandIn(
        "boolq",
        {"BoolQ/val.jsonl": jsonl(*[{"question": q, "passage": p, "label": a} for q, p, a in BOOLQ])},
        (BOOLQ_CONTEXT,),
        (" no", " yes"),
        1,
    ),
    StandIn(
        "boolq",
        {"boolq/dev.jsonl": jsonl(*[{"question": q, "title": "t", "passage": p, "answer": a} for q, p, a in BOOLQ])},
        (BOOLQ_CONTEXT,),
        (" no", " yes"),
        1,
    ),
    StandIn(
        "boolq",
        {
            "boolq.jsonl": jsonl(
                *[{"query": "Passage: Water is wet.\nQuestion: is water wet?", "choices": ["no", "yes"], "gold": 0}] * 3
            )
        },
        (BOOLQ_CONTEXT,),
        (" no", " yes"),
        0,
    ),
    StandIn(
        "copa",
        {"COPA/val.jsonl": jsonl(*COPA), "COPA/train.jsonl": jsonl(*COPA)},
        ("The glass fell because",),
        (" I pushed it.", " he slept."),
        0,
        from_test=False,
    ),
    StandIn(
        "cb",
        {"CB/val.jsonl": jsonl(*[{"premise": p, "hypothesis": h, "label": x} for p, h, x in NLI])},
        ("It rained.\nquestion: It was wet. true, false, or neither?\nanswer:",),
        (" true", " false", " neither"),
        0,
    ),
    StandIn(
        "rte",
        {
            "RTE/val.jsonl": jsonl(
                *[
                    {"premise": p, "hypothesis": h, "label": x}
                    for p, h, x in (
                        ("A.", "B.", "not_entailment"),
                        ("C.", "D.", "entailment"),
                        ("E.", "F.", "entailment"),
                    )
                ]
            )
        },
        ("A.\nquestion: B. True or False?\nanswer:",),
        (" True", " False"),
        1,
    ),
    StandIn(
        "sst2",
        {"sst2_stsa.binary.test": "1 a fine film .\n0 a bad one .\n0 no .\n"},
        ("Review: a fine film .\nSentiment:",),
        (" Negative", " Positive"),
        1,
    ),
    StandIn(
        "sst2",
        {"SST-2/dev.tsv": 'sentence\tlabel\na "fine film\t1\nbad\t0\nno\t0\n'},
        ('Review: a "fine film\nSentiment:',),
        (" Negative", " Positive"),
        1,
    ),
    StandIn(
        "ag_news",
        {"agnews_test.csv": 'Class Index,Title,Description\n3,Oil up,"Oil, gas"\n1,War,Far\n2,Ball,Kick\n'},
        ("Article: Oil up. Oil, gas\nAnswer:",),
        TOPICS,
        2,
    ),
    StandIn(
        "ag_news",
        {"ag_news_csv/test.csv": '"4","Chips","New"\n"1","War","Far"\n"2","Ball","A\nkick"\n'},
        ("Article: Chips. New\nAnswer:",),
        TOPICS,
        3,
    ),
    StandIn(
        "triviaqa",
        {"unfiltered-web-dev.json": json.dumps({"Data": TRIVIA, "Version": 1.0})},
        ("Q: Who was ann?\n\nA:",),
        ("ANN", "ann"),
        0,
    ),
    StandIn(
        "natural_questions",
        {"NQ-open.dev.jsonl": jsonl(*NQ, {"question": "why", "answer": ["so"]})},
        ("Q: Who was first?\n\nA:",),
        ("Adam", "Ann"),
        0,
    ),
    StandIn(
        "web_questions", {"webquestions_test.json": json.dumps(WEB)}, ("Q: Where is rome?\n\nA:",), ("rome", "x"), 0, 3
    ),
    StandIn(
        "web_questions",
        {"webquestions.examples.test.json": json.dumps(WEB_OLD)},
        ("Q: Who is tim?\n\nA:",),
        ("Tim Cook", "Tim"),
        0,
    ),
    StandIn(
        "squad_v1",
        {"dev-v1.1.json": json.dumps(SQUAD_V1), "train-v1.1.json": json.dumps(SQUAD_V1)},
        (RAIN,),
        ("water", "Water"),
        0,
        2,
        from_test=False,
    ),
    StandIn("squad_v2", {"dev-v2.0.json": json.dumps(SQUAD)}, (RAIN,), ("water", "Water"), 0),
    StandIn("gsm8k", {"gsm8k_test.jsonl": jsonl(*GSM_RECORDS)}, ("Question: How many?\nAnswer:",), ("2",), 0),
    StandIn(
        "gsm8k",
        {"grade_school_math/data/test.jsonl": jsonl(*GSM_RECORDS)},
        ("Question: How many?\nAnswer:",),
        ("2",),
        0,
    ),
    StandIn(
        "translation_fr_en",
        {"test.fr-en.fr": "Le chat.\nIl pleut.\nOui.\n", "test.fr-en.en": "The cat.\nIt rains.\nYes.\n"},
        ("Le chat. =",),
        ("The cat.",),
        0,
    ),
    StandIn(
        "translation_en_ro",
        {"test.ro-en.jsonl": jsonl(*[{"en": f"Word {i}.", "ro": f"Cuvânt {i}."} for i in range(3)])},
        ("Word 0. =",),
        ("Cuvânt 0.",),
        0,
    ),
    StandIn(
        "crows_pairs",
        {"crows_pairs_anonymized.csv": CROWS},
        ("",),
        ("They are, well, loud.", "We are, well, loud."),
        0,
    ),
    StandIn(
        "winogender",
        {"all_sentences.tsv": WINOGENDER},
        ('The baker told the guest that he could pay. "He" refers to the',),
        (" baker", " guest"),
        1,
    ),
    StandIn("text", {"a.txt": "One.\n\nTwo.\n", "b.txt": "Three."}, ("One.\n\nTwo.",), (), 0, 2, from_test=False),
]
