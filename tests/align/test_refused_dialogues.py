"""Dialogues that the chat template refuses, in all kinds of training that read dialogues."""

import pytest

from scaling.align import dpo, reward, supervised
from scaling.align.rl import prompts
from scaling.config import schema as cfg
from scaling.data import tokenizer
from scaling.data.chat_tokenizer import TEMPLATE

# As templates of some models do for a system message, which they do not know.
REFUSES = "{% for message in messages if message['content'] == 'bad' %}{{ raise_exception('unknown') }}{% endfor %}"
KINDS = {
    "supervised": (supervised.data, {"response": "a"}),
    "reward": (reward.data, {"chosen": "a", "rejected": "z"}),
    "dpo": (dpo.data, {"chosen": "a", "rejected": "z"}),
    "prompts": (prompts.data, {}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_the_template_refuses_is_named_or_left_out_and_counted(folder, kind, caplog):
    data, answers = KINDS[kind]
    path = folder.write("refused.jsonl", [{"prompt": text, **answers} for text in ("q", "bad", "r")])
    (folder / "refuses.jinja").write_text(REFUSES + TEMPLATE)

    def read(bad_records):
        config = cfg.Config(
            data=cfg.Data(train=path, validation_fraction=0.5, bad_records=bad_records),
            chat=cfg.Chat(template=str(folder / "refuses.jinja")),
            train=cfg.Train(sequence_length=32, batch_tokens=64, microbatch_sequences=2),
            eval=cfg.Eval(batch_sequences=2),
            rl=cfg.Reinforcement(reward="exact_match", response_tokens=8),
        )
        return data(config, tokenizer.load("bytes+chat"))

    with pytest.raises(ValueError, match=r"refused\.jsonl:2: the chat template refuses the dialogue: unknown"):
        read("error")
    found = read("skip")
    assert found.training.sequences and len(found.held_out)
    assert "refused.jsonl:2: the chat template refuses the dialogue: unknown" in caplog.text
    assert "refused.jsonl:1" not in caplog.text
