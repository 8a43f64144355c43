"""Precision, recall and F1 of entities in tagged sentences, as conlleval and seqeval (its default mode) count them."""

from collections.abc import Sequence
from typing import NamedTuple


class Entity(NamedTuple):
    """An entity: its kind, its first word and its last."""

    kind: str
    first: int
    last: int


def entities(tags: Sequence[str]) -> list[Entity]:
    """The entities of a sentence whose tags are ``B-KIND``, ``I-KIND`` or ``O``.

    An ``I-KIND`` that follows no word of its kind begins an entity, too.
    """
    found = list[Entity]()
    for place, tag in enumerate(tags):
        letter, _, kind = tag.partition("-")
        if letter == "O":
            continue
        if letter != "B" and found and found[-1].kind == kind and found[-1].last == place - 1:
            found[-1] = found[-1]._replace(last=place)
        else:
            found.append(Entity(kind, place, place))
    return found


def entity_scores(right: Sequence[Sequence[str]], said: Sequence[Sequence[str]]) -> dict[str, float]:
    """Of the entities that were said the share that is right in kind and words, of the right ones the share that was
    said, and the harmonic mean of the two, over all sentences together; 0 where there is nothing to divide by.

    Args:
        right: the tags of each sentence.
        said: those that a model gave, as many.
    """
    wanted, found = (
        {(number, *entity) for number, tags in enumerate(sentences) for entity in entities(tags)}
        for sentences in (right, said)
    )
    hits = len(wanted & found)
    return {
        "f1": 2 * hits / max(1, len(wanted) + len(found)),
        "precision": hits / max(1, len(found)),
        "recall": hits / max(1, len(wanted)),
    }
