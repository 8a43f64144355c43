"""The most frequent words of the embedded corpus, for the word-scrambling tasks."""

import functools
import gzip
import json
import re
from collections import Counter

from scaling.data import books

MAX_LENGTH = 15  # the longest word in OpenAI's files

# Lower case only, which leaves out most names. Parts of words with a hyphen or an apostrophe do not count.
_WORD = re.compile(r"(?<![\w'-])[a-z]+(?![\w'-])")


@functools.cache
def _ranked() -> tuple[str, ...]:
    counts: Counter[str] = Counter()
    for path in (books.TRAIN, books.VALIDATION):
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            for line in lines:
                counts.update(_WORD.findall(json.loads(line)["text"]))
    return tuple(sorted(counts, key=lambda word: (-counts[word], word)))


def frequent_words(min_length: int) -> tuple[str, ...]:
    """The words of ``min_length`` to ``MAX_LENGTH`` letters, most frequent first; about 20,000."""
    return tuple(word for word in _ranked() if min_length <= len(word) <= MAX_LENGTH)
