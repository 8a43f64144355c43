"""A run that is trained by ``config.chat.template`` is asked by the same template, also where the file is gone."""

import json
import shutil

import pytest

from scaling import cli
from scaling.config import schema as cfg
from scaling.data.chat.template import read_template
from scaling.generate.generator import Generator
from scaling.interop import tokenizer_files
from scaling.interop.served import load_served
from scaling.runs.config_json import read_config_json
from scaling.runs.start import Start

TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>={{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>={% endif %}"
)
ASKED = [{"role": "user", "content": "q"}]
FRAMED = "<|user|>=q<|end|><|assistant|>="


@pytest.fixture(scope="module")
def parent(folder):
    """A run of which the template's file is deleted after the training."""
    file, records = folder / "own.jinja", folder.write("own.jsonl", [{"prompt": "q", "response": "a"}] * 40)
    file.write_text(TEMPLATE)
    knobs = ["--config.data.tokenizer=bytes+chat", f"--config.data.train={records}", "--config.align.epochs=1"]
    own = [f"--config.chat.template={file}", "--config.chat.system=Be kind."]
    assert folder.align("sft", "own", *own, *knobs) == 0
    file.unlink()
    return folder / "own"


@pytest.mark.slow
def test_whoever_asks_the_run_frames_dialogues_as_its_training(parent, monkeypatch):
    served = load_served(parent)
    assert served.words.decode(served.chat().prompt(ASKED)) == FRAMED
    other = TEMPLATE.replace("=", "-")
    assert served.words.decode(served.chat(other).prompt(ASKED)) == FRAMED.replace("=", "-")
    read, generate = [], Generator.generate

    def recorded(self, prompts, *more):
        read.extend(prompts)
        return generate(self, prompts, *more)

    monkeypatch.setattr(Generator, "generate", recorded)
    assert cli.main(["generate", str(parent), "--chat", "--prompt=q", "--tokens=2", "--json"]) == 0
    assert [served.words.decode(ids) for ids in read] == [FRAMED]


def test_a_run_that_begins_with_it_takes_its_template_and_system_message_unless_it_has_its_own(parent, folder):
    config = cfg.Config(start=str(parent))
    start = Start.of(config, folder / "template-child")
    assert read_template(start.chat_for(config).template) == TEMPLATE
    assert start.chat_for(config).system == "Be kind."
    other = cfg.Config(start=str(parent), chat=cfg.Chat(template="mine.jinja", system="kind"))
    assert start.chat_for(other) == other.chat
    plain = cfg.Config(start=str(folder / "base"))
    assert Start.of(plain, folder / "template-child").chat_for(plain) == plain.chat


def exported(run):
    values = read_config_json(run)
    return tokenizer_files.of_run(run, values, cfg.freeze(values["config"]).model)


def test_its_export_has_the_template(parent):
    files = exported(parent).files
    assert json.loads(files["tokenizer_config.json"])["chat_template"] == TEMPLATE
    assert "chat_template.jinja" not in files


def test_its_export_ends_a_text_where_the_template_ends_a_turn(parent, tmp_path):
    """transformers stops at any id of a list, and takes those of generation_config.json if there is one."""
    words = load_served(parent).words
    end, user = words.controls["<|end|>"], words.controls["<|user|>"]
    assert exported(parent).config["eos_token_id"] == end  # the tokenizer's own end of turn
    run = tmp_path / "other"
    shutil.copytree(parent, run)
    (run / "chat.jinja").write_text(TEMPLATE.replace("<|end|>", "<|user|>"))  # turns end so
    assert exported(run).config["eos_token_id"] == [user, end]
    kept = run / tokenizer_files.KEPT
    kept.mkdir()
    (kept / "config.json").write_text(json.dumps({"model_type": "gpt2", "eos_token_id": 7}))
    (kept / "generation_config.json").write_text(json.dumps({"eos_token_id": [7, end], "top_k": 3}))
    found = exported(run)
    assert found.config["eos_token_id"] == [user, 7]
    assert json.loads(found.files["generation_config.json"]) == {"eos_token_id": [user, 7, end], "top_k": 3}
    assert json.loads(found.files["tokenizer_config.json"])["eos_token"] == "<|end|>"  # the template may name it
