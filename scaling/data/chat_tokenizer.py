"""The control tokens of dialogues, ``+chat`` after a tokenizer's name (``control_tokenizer``), and their template."""

from scaling.data.tokenizer_base import END_OF_TEXT

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
NAMED = {"bos_token": END_OF_TEXT, "eos_token": END_OF_TURN}  # what the template may refer to
