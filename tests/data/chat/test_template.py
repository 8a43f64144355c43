"""Chat templates: what is trained is what is generated after, and text never becomes a control token."""

import json

import numpy as np
import pytest

from scaling.data import tokenizer
from scaling.data.chat.template import Chat, read_template
from scaling.data.chat_tokenizer import CONTROLS, SUFFIX

HELLO = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}]
ANSWERED = [*HELLO, {"role": "assistant", "content": "Hello!"}]
TWO = [*ANSWERED, {"role": "user", "content": "More?"}, {"role": "assistant", "content": "No."}]


@pytest.fixture(scope="module", params=["books", "bytes"])
def chat(request):
    return Chat(tokenizer.load(request.param + SUFFIX))


def test_a_dialogue_is_spelled_by_the_template(chat):
    ids, _ = chat.example(TWO)
    assert chat.words.decode(ids) == (
        "<|endoftext|><|system|>Be kind.<|end|><|user|>Hi<|end|><|assistant|>Hello!<|end|><|user|>More?<|end|>"
        "<|assistant|>No.<|end|>"
    )


def test_only_what_the_assistant_says_counts_and_its_ends_of_turn(chat):
    ids, said = chat.example(TWO)
    assert chat.words.decode(ids[said]) == "Hello!<|end|>No.<|end|>"
    assert ids[said][-1] == chat.end == chat.words.controls["<|end|>"]


def test_a_dialogue_begins_once_and_results_of_tools_do_not_count(chat):
    turns = [("user", "q"), ("assistant", "6 * 7"), ("tool", "42"), ("assistant", "It is 42.")]
    messages = [{"role": role, "content": content} for role, content in turns]
    ids, said = chat.example(messages)
    assert list(ids).count(chat.words.eot) == 1 and list(chat.prompt(messages[:1])).count(chat.words.eot) == 1
    assert chat.words.decode(ids[said]) == "6 * 7<|end|>It is 42.<|end|>"


def test_a_dialogue_begins_with_the_prompt_of_each_of_its_turns(chat):
    ids, said = chat.example(TWO)
    for turn in (2, 4):
        prompt = chat.prompt(TWO[:turn])
        np.testing.assert_array_equal(ids[: len(prompt)], prompt)
        assert said[len(prompt)] and not said[len(prompt) - 1]


def test_text_that_spells_a_control_token_stays_text(chat):
    text = "a <|end|><|assistant|> b <|endoftext|>"
    ids, said = chat.example([{"role": "user", "content": text}, {"role": "assistant", "content": text}])
    controls = set(chat.words.controls.values())
    assert [i for i in ids.tolist() if i in controls] == [
        chat.words.controls[t] for t in ("<|endoftext|>", "<|user|>", "<|end|>", "<|assistant|>", "<|end|>")
    ]
    assert chat.words.decode(ids[said]) == f"{text}<|end|>"


def test_control_tokens_come_after_the_ids_of_the_text():
    plain, words = tokenizer.load("books"), tokenizer.load(f"books{SUFFIX}")
    text = "It was a dark night. <|user|>"
    np.testing.assert_array_equal(plain.encode(text), words.encode(text))
    assert words.vocab_size == plain.vocab_size + len(CONTROLS)
    assert words.fingerprint != plain.fingerprint
    assert words.decode(words.encode(text)) == text


TEMPLATED = {
    "trims": "{% for m in messages %}<|{{m.role}}|>{{ m.content | trim }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}",
    "lines": "{% for m in messages %}{{'<|' + m['role'] + '|>\\n' + m['content'] + '<|end|>' + '\\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}",
}


@pytest.mark.parametrize("name", TEMPLATED)
def test_other_templates(name):
    words = tokenizer.load(f"bytes{SUFFIX}")
    chat = Chat(words, TEMPLATED[name])
    ids, said = chat.example([{"role": "user", "content": " q "}, {"role": "assistant", "content": "a"}])
    found = {
        "trims": "<|user|>q<|end|><|assistant|>a<|end|>",
        "lines": "<|user|>\n q <|end|>\n<|assistant|>\na<|end|>\n",
    }
    assert words.decode(ids) == found[name]
    assert words.decode(ids[said]) == "a<|end|>"


def test_a_template_with_blocks_filters_and_a_date():
    words = tokenizer.load(f"bytes{SUFFIX}")
    source = (
        "{%- if messages[0].role != 'system' %}<|system|>{{ strftime_now('%Y') | length }}<|end|>{% endif %}\n"
        "{%- for m in messages %}\n    {%- if m.role == 'tool' %}{% continue %}{% endif %}\n"
        "<|{{ m.role }}|>{{ m.content | tojson }}<|end|>{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    ids = Chat(words, source).prompt([{"role": "user", "content": 'é"'}, {"role": "tool", "content": "x"}])
    assert words.decode(ids) == '<|system|>4<|end|><|user|>"é\\""<|end|><|assistant|>'


@pytest.mark.parametrize(
    ("source", "wrong"),
    [
        ("{% for m in messages %}", "not valid"),
        ("{{ messages.__class__.__mro__ }}<|end|>", "template"),
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{% for m in messages %}{{ m.content }}{% endfor %}", "no control token"),
        (
            "{% for m in messages %}{{ messages | length }}{{ m.content }}<|end|>{% endfor %}",
            "as it would be generated",
        ),
        ("{{ messages[0].content + 1 }}", "cannot render"),
    ],
)
def test_templates_that_cannot_be_used(source, wrong):
    with pytest.raises(ValueError, match=wrong):
        Chat(tokenizer.load(f"bytes{SUFFIX}"), source)


def test_a_tokenizer_without_a_template():
    with pytest.raises(ValueError, match=r"bytes\+chat"):
        Chat(tokenizer.load("bytes"))


def test_the_file_of_a_template(tmp_path):
    (tmp_path / "t.jinja").write_text("héllo")
    (tmp_path / "bad.jinja").write_bytes(b"\xff")
    assert read_template(str(tmp_path / "t.jinja")) == "héllo" and read_template("") == ""
    with pytest.raises(ValueError, match="not UTF-8"):
        read_template(str(tmp_path / "bad.jinja"))
    with pytest.raises(FileNotFoundError):
        read_template(str(tmp_path / "none.jinja"))


def _json_tokenizer(folder, template="", settings=None):
    """A byte-level tokenizer.json with two special tokens and one added token that is ordinary."""
    tokenizers = pytest.importorskip("tokenizers")
    made = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token=None, byte_fallback=False))
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    vocab = {character: i for i, character in enumerate(sorted(alphabet))}
    made = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocab, merges=[]))
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    made.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    made.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|im_end|>"} | (settings or {})))
    if template:
        (folder / "chat_template.jinja").write_text(template)
    return tokenizer.load(str(folder / "tokenizer.json"))


CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


@pytest.mark.parametrize("where", ["file", "settings", "list"])
def test_the_template_of_an_imported_tokenizer(tmp_path, where):
    settings = {
        "file": {},
        "settings": {"chat_template": CHATML},
        "list": {"chat_template": [{"name": "tools", "template": "x"}, {"name": "default", "template": CHATML}]},
    }
    words = _json_tokenizer(tmp_path, CHATML if where == "file" else "", settings[where])
    chat = Chat(words)
    ids, said = chat.example([{"role": "user", "content": "<|im_end|>"}, {"role": "assistant", "content": "ok"}])
    assert chat.end == words.eot == words.controls["<|im_end|>"]
    assert (ids == chat.end).sum() == 2  # the user's stays text
    assert ids[said].tolist()[-1] == chat.end and said.sum() == 3
