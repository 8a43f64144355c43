"""Tokenized dialogues as rows of a batch: packed without seeing each other, weighted where the loss counts."""

import dataclasses
import hashlib
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from scaling.data.batch import Batch, restarted
from scaling.data.chat.dialogues import Dialogue, Skipped
from scaling.data.chat.template import Chat, shortened


@dataclasses.dataclass(frozen=True)
class Text:
    """A tokenized dialogue: ids, int32 [n], and which of them count in the loss, bool [n]."""

    ids: np.ndarray
    counts: np.ndarray

    @property
    def slots(self) -> int:
        """Places in a row; the last id is only a target."""
        return len(self.ids) - 1


def texts(dialogues: Iterable[Dialogue], chat: Chat, room: int, skipped: Skipped, everything: bool) -> Iterator[Text]:
    """Tokenized dialogues that fit a row; what is too long loses its oldest turns, never the system's.

    Args:
        dialogues: each ends with the assistant.
        chat: renders them.
        room: places of a row.
        skipped: counts the dialogues that lose turns, and those that are left out, because the template refuses them or
            their last turns alone do not fit.
        everything: all tokens count, and not only the assistant's.
    """
    for dialogue in dialogues:
        try:
            text, lost = fitting(dialogue.messages, chat, room)
        except ValueError as error:
            skipped.skip(dialogue.where, str(error))
            continue
        if text is None:
            skipped.note(dialogue.where, f"left out: its last turns do not fit {room} tokens")
            continue
        if lost:
            skipped.note(dialogue.where, f"its oldest turns are left out, to fit {room} tokens")
        counts = np.ones_like(text.counts) if everything else text.counts
        if not counts[1:].any():
            skipped.skip(dialogue.where, "no token counts in the loss")
            continue
        yield dataclasses.replace(text, counts=counts)


def fitting(messages: Sequence[dict[str, str]], chat: Chat, room: int) -> tuple[Text | None, int]:
    """The text of a dialogue after as many of its oldest turns are left out as must be, and how many these are.

    A turn is a user's message with all that follows up to the next one. None = the last turn alone does not fit.

    Raises:
        ValueError: as ``Chat.example``.
    """
    for lost, (kept, _) in enumerate(shortened(messages)):
        text = Text(*chat.example(kept))
        if text.slots <= room:
            return text, lost
    return None, lost + 1


def packed(found: Sequence[Text], room: int) -> list[Batch]:
    """Rows of ``room`` places: the longest texts first, each into the fullest row that has room (best fit).

    Each row has arrays [room]: tokens, targets, weights, positions and segments. Places that are left are a segment of
    their own, without weight.
    """
    order = sorted(range(len(found)), key=lambda i: -found[i].slots)
    rows: list[list[int]] = []
    with_room: dict[int, list[int]] = {}  # free places -> rows
    for i in order:
        slots = found[i].slots
        free = next((n for n in range(slots, room + 1) if with_room.get(n)), None)
        if free is None:
            rows.append([])
            row, free = len(rows) - 1, room
        else:
            row = with_room[free].pop()
        rows[row].append(i)
        with_room.setdefault(free - slots, []).append(row)
    return [_row([found[i] for i in row], room) for row in rows]


def _row(members: Sequence[Text], room: int) -> Batch:
    tokens, targets, segments = (np.zeros(room, np.int32) for _ in range(3))
    weights = np.zeros(room, np.float32)
    segments[:] = len(members)
    at = 0
    for number, text in enumerate(members):
        here = slice(at, at + text.slots)
        tokens[here], targets[here] = text.ids[:-1], text.ids[1:]
        weights[here], segments[here] = text.counts[1:], number
        at += text.slots
    return Batch(tokens, targets, weights, restarted(segments), segments)


def fingerprint(rows: Sequence[Batch], *more: object) -> str:
    """Hash of rows and whatever else decides an order."""
    digest = hashlib.sha256(repr(more).encode())
    for row in rows:
        for array in row:
            digest.update(b"-" if array is None else array.tobytes())
    return digest.hexdigest()
