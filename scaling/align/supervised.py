"""Supervised fine-tuning on dialogues (InstructGPT, arXiv 2203.02155, section 3.5): the first step of alignment.

The loss is next-token prediction on what the assistant says, with its ends of turn. Dialogues are packed into rows
in which they do not see each other. All targets of a batch weigh alike, whatever dialogue or device they lie in.
"""

import logging

from scaling.config import schema as cfg
from scaling.data.chat import dialogues, rows
from scaling.data.chat.template import Chat, read_template
from scaling.data.chat_tokenizer import SUFFIX
from scaling.data.rows import Rows, split
from scaling.data.tokenizer import Tokenizer
from scaling.objectives.next_token import next_token
from scaling.train.recipe import Recipe
from scaling.train.run import Data

log = logging.getLogger(__name__)


def data(config: cfg.Config, words: Tokenizer) -> Data:
    """Packed dialogues of ``config.data.train``, and of ``config.data.validation`` or a held-out fraction.

    Raises:
        FileNotFoundError, ValueError: as ``dialogues.read``, or nothing fits the rows.
    """
    return read(config, words)[0]


def read(config: cfg.Config, words: Tokenizer) -> tuple[Data, list[dialogues.Dialogue]]:
    """What ``data`` makes, and the dialogues that are held out."""
    skipped = dialogues.Skipped(refuses=config.data.bad_records == "error")
    chat, room = Chat(words, read_template(config.chat.template)), config.train.sequence_length
    everything = config.align.loss_on == "all"

    def texts(pattern: str) -> list[tuple[rows.Text, dialogues.Dialogue]]:
        found = [
            (text, dialogue)
            for dialogue in dialogues.read(pattern, skipped, config.chat.system)
            for text in rows.texts([dialogue], chat, room, skipped, everything)
        ]
        if not found:
            raise ValueError(f"{pattern}: no dialogue fits config.train.sequence_length={room}")
        return found

    found, held_out = split(config.data, texts)
    skipped.summary()
    training = [text for text, _ in found]
    packed = rows.packed(training, room)
    slots = sum(text.slots for text in training)
    log.info(
        "%d dialogues in %d rows of %d tokens, %.0f %% filled", len(training), len(packed), room,
        100 * slots / (len(packed) * room),
    )  # fmt: skip
    validation = rows.packed([text for text, _ in held_out], room)
    return Data(Rows.of(packed, config), validation, None), [dialogue for _, dialogue in held_out]


RECIPE = Recipe("align sft", data, next_token, suffix=SUFFIX, counts_epochs=True)
