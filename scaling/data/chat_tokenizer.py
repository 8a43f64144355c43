"""A tokenizer with control tokens for dialogues after its own ids: ``books+chat``, ``gpt2+chat``, ``FILE+chat``.

The ids of text are those of the tokenizer before the ``+``, so a model that was trained with that one can be trained on
with this one. No text has a control token: only a chat template puts them there.
"""

from collections.abc import Sequence

import numpy as np

from scaling.data.tokenizer_base import END_OF_TEXT, Tokenizer, fingerprint

SUFFIX = "+chat"
TURNS = {role: f"<|{role}|>" for role in ("system", "user", "assistant")}
END_OF_TURN = "<|end|>"
CONTROLS = (*TURNS.values(), END_OF_TURN)

# In the language of Hugging Face's templates (jinja2), so that other programs render dialogues as we do.
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


class ChatTokenizer(Tokenizer):
    """See the module.

    Args:
        base: the tokenizer of the text.
    """

    def __init__(self, base: Tokenizer) -> None:
        self.base = base
        self.name = f"{base.name}{SUFFIX}"
        self.template = base.template
        self.vocab_size, self.eot = base.vocab_size + len(CONTROLS), base.eot
        self.fingerprint = fingerprint(b"chat", base.fingerprint.encode(), *(token.encode() for token in CONTROLS))

    @property
    def start(self) -> tuple[int, ...]:
        """See ``Tokenizer``."""
        return self.base.start

    @property
    def bos(self) -> int:
        """See ``Tokenizer``."""
        return self.base.bos

    @property
    def controls(self) -> dict[str, int]:
        """See ``Tokenizer``."""
        return {token: self.base.vocab_size + i for i, token in enumerate(CONTROLS)} | {END_OF_TEXT: self.eot}

    @property
    def chat_template(self) -> str:
        """See ``Tokenizer``."""
        return TEMPLATE

    @property
    def named_tokens(self) -> dict[str, str]:
        """See ``Tokenizer``."""
        return {"bos_token": END_OF_TEXT, "eos_token": END_OF_TURN}

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """See ``Tokenizer``."""
        return self.base.encode_batch(texts)

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """See ``Tokenizer``; control tokens are spelled out."""
        array = np.asarray(ids, np.int64)
        texts = list[str]()
        for part in np.split(array, np.flatnonzero(np.diff(array >= self.base.vocab_size, prepend=False))):
            if len(part) and part[0] >= self.base.vocab_size:
                texts += [CONTROLS[i - self.base.vocab_size] for i in part]
            else:
                texts.append(self.base.decode(part))
        return "".join(texts)

    def file(self) -> tuple[str, bytes]:
        """See ``Tokenizer``: the file of the text's tokenizer."""
        return self.base.file()

    def beside(self) -> dict[str, bytes]:
        """See ``Tokenizer``."""
        return self.base.beside()
