"""Texts as groups of token ids to be scored: where a completion begins, and what stands before it."""

from collections.abc import Sequence

from scaling.data.tokenizer import Tokenizer
from scaling.evaluate.scoring.likelihoods import Group


def encode_options(
    words: Tokenizer, options: Sequence[tuple[str, str]], prefix: tuple[int, ...] = ()
) -> tuple[list[tuple[Group, list[int]]], bool]:
    """Tokens of the options of an item, each a context and a completion, whose likelihoods are to be compared.

    An option's tokens are those of its whole text. Its completion's tokens are those after the tokens of the context
    alone. If the tokenizer joins the end of a context with the beginning of a completion (``)`` and ``.`` to ``).``),
    there are no such tokens. Then all options are scored from an earlier token on, over the same text:

    - if they share the context, from its first token that a completion changes;
    - else over the same last tokens, or, if these differ, from the first token that differs (the "full" score of Trinh
      and Le 2018).

    Args:
        words: tokenizer.
        options: (context, completion) of each; completions are not empty.
        prefix: token ids before each context. If both are empty, ``Tokenizer.bos`` is the context.

    Returns:
        Groups, each with the places of its options; and whether they begin before the completions.

    Raises:
        ValueError: a completion that adds no token.
    """
    contexts = {context: _ids(words, context) for context, _ in options}
    wholes = [_ids(words, context + completion) for context, completion in options]
    firsts = [contexts[context] for context, _ in options]
    for (context, completion), first, whole in zip(options, firsts, wholes, strict=True):
        if first == whole:
            raise ValueError(f"the completion {completion[:40]!r} adds no token to its context ...{context[-40:]!r}")
    starts = [
        len(first) if whole[: len(first)] == first else _common([first, whole])
        for first, whole in zip(firsts, wholes, strict=True)
    ]
    early = any(start < len(first) for start, first in zip(starts, firsts, strict=True))
    if early:
        size = max(len(whole) - start for whole, start in zip(wholes, starts, strict=True))
        if len(contexts) > 1 and len({whole[-size:] for whole in wholes}) == 1:
            starts = [len(whole) - size for whole in wholes]
        else:
            starts = [min(*starts, _common(wholes)) if len(contexts) > 1 else min(starts)] * len(wholes)
    places: dict[tuple[int, ...], list[int]] = {}
    for place, (whole, start) in enumerate(zip(wholes, starts, strict=True)):
        places.setdefault((*prefix, *whole[:start]) or (words.bos,), []).append(place)
    return [
        (Group(context, tuple(wholes[place][starts[place] :] for place in its_places)), its_places)
        for context, its_places in places.items()
    ], early


def _common(texts: Sequence[tuple[int, ...]]) -> int:
    """The number of tokens that texts have in common at their beginnings."""
    shortest = min(texts, key=len)
    return next((i for i, ids in enumerate(zip(*texts, strict=False)) if len(set(ids)) > 1), len(shortest))


def encode_group(words: Tokenizer, context: str, completions: Sequence[str], prefix: tuple[int, ...] = ()) -> Group:
    """Tokens of a context and its completions.

    The tokens of context and completion together are split after as many as the context alone has. This is the rule of
    lm-evaluation-harness, so that numbers agree. ``encode_options`` differs only where a token joins the two.
    ``prefix`` comes before the context; if both are empty, ``Tokenizer.bos`` is the context.

    Raises:
        ValueError: a completion that adds no token.
    """
    first = _ids(words, context)
    found = []
    for completion in completions:
        whole = _ids(words, context + completion)
        if len(whole) <= len(first):
            raise ValueError(f"the completion {completion[:40]!r} adds no token to its context ...{context[-40:]!r}")
        found.append(whole[len(first) :])
    return Group((*prefix, *first) or (words.bos,), tuple(found))


def encode_apart(words: Tokenizer, options: Sequence[tuple[str, str]]) -> list[tuple[Group, list[int]]]:
    """As ``encode_options``, for an encoder that reads the contexts and a decoder that writes the completions.

    Both are tokenized apart. A completion that follows a blank in running text begins without it, as targets do.

    Raises:
        ValueError: a completion without tokens.
    """
    places: dict[str, list[int]] = {}
    for place, (context, _) in enumerate(options):
        places.setdefault(context, []).append(place)
    groups = []
    for context, its_places in places.items():
        completions = tuple(_ids(words, options[place][1].lstrip(" ")) for place in its_places)
        if not all(completions):
            raise ValueError(f"a completion after the context ...{context[-40:]!r} has no tokens")
        groups.append((Group(_ids(words, context), completions), its_places))
    return groups


def _ids(words: Tokenizer, text: str) -> tuple[int, ...]:
    return tuple(map(int, words.encode(text))) if text else ()
