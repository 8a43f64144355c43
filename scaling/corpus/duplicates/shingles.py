"""Texts as sets of word n-grams ("shingles"), their MinHash signatures, and the hashes of their bands.

The Jaccard similarity of two sets is the size of the intersection divided by that of the union. Two MinHash signatures
agree in one place with a probability that equals the similarity (Broder, "On the resemblance and containment of
documents", 1997). A signature of B bands of R hashes each makes a pair with similarity s a candidate, which is to say
that the two agree in a whole band, with probability 1 - (1 - s^R)^B (Leskovec, Rajaraman and Ullman, "Mining of Massive
Datasets", section 3.4).
"""

import itertools
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

# Scripts without spaces between words: each character counts as a word.
_UNSPACED = r"([\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}])"
_BATCH = 16_000_000  # bytes of text whose words are in memory at the same time, if no document alone is longer


def candidate_probability(similarity: float, bands: int, rows: int) -> float:
    """The probability that a pair of documents agrees in at least one whole band of its signatures."""
    return 1 - (1 - similarity**rows) ** bands


def half_point(bands: int, rows: int) -> float:
    """The similarity at which every second pair becomes a candidate: the threshold of the S-curve."""
    return (1 - 0.5 ** (1 / bands)) ** (1 / rows)


def words(texts: pa.Array) -> pa.Array:
    """The texts as words with one space between: lower case, without punctuation, symbols and white space.

    Words are runs of letters, marks and digits. Texts that are not pure ASCII are normalised to NFKD, and in scripts
    without spaces every character is a word.

    Args:
        texts: large strings.
    """
    ascii_only = pc.string_is_ascii(texts)
    if not pc.all(ascii_only).as_py():
        others = pc.utf8_normalize(texts.filter(pc.invert(ascii_only)), form="NFKD")
        unspaced = pc.match_substring_regex(others, _UNSPACED)
        if pc.any(unspaced).as_py():
            spaced = pc.replace_substring_regex(others.filter(unspaced), _UNSPACED, r" \1 ")
            others = pc.replace_with_mask(others, unspaced, spaced)
        texts = pc.replace_with_mask(texts, pc.invert(ascii_only), others)
    lower = pc.replace_substring_regex(pc.utf8_lower(texts), r"[^\p{L}\p{M}\p{N}]+", " ")
    return pc.ascii_trim(lower, " ")


def batches(texts: pa.ChunkedArray) -> Iterator[pa.Array]:
    """The texts in pieces of ``_BATCH`` bytes, or of one document if that is longer."""
    for chunk in texts.chunks:
        ends = np.cumsum(pc.binary_length(chunk).to_numpy(zero_copy_only=False))
        first = 0
        while first < len(chunk):
            before = ends[first - 1] if first else 0
            last = max(first + 1, int(np.searchsorted(ends, before + _BATCH, side="right")))
            yield chunk.slice(first, last - first)
            first = last


def signatures(normal: pa.Array, hashes: int, ngram: int, seed: int) -> np.ndarray:
    """MinHash signatures.

    Args:
        normal: what ``words`` returned. N texts; one with fewer words than ``ngram`` is one shingle as a whole.
        hashes: length of a signature.
        ngram: words of a shingle.
        seed: of the hash functions.

    Returns:
        (N, hashes) 32-bit hashes.
    """
    import daft

    if not len(normal):
        return np.zeros((0, hashes), np.uint32)
    made = daft.Series.from_arrow(normal).minhash(num_hashes=hashes, ngram_size=ngram, seed=seed).to_arrow()
    if isinstance(made, pa.ChunkedArray):
        made = made.combine_chunks()
    return made.flatten().to_numpy().reshape(-1, hashes)


def text_hashes(texts: pa.Array) -> np.ndarray:
    """A 64-bit hash of each text."""
    import daft

    if not len(texts):
        return np.zeros(0, np.uint64)
    return daft.Series.from_arrow(texts).hash().to_arrow().to_numpy(zero_copy_only=False).astype(np.uint64)


def band_hashes(made: np.ndarray, bands: int) -> np.ndarray:
    """One hash for each band of signatures; the same values in another band give another hash.

    Args:
        made: (N, hashes) of ``signatures``; hashes is a multiple of ``bands``.
        bands: number of bands.

    Returns:
        (N, bands) 64-bit hashes.
    """
    parts = made.reshape(len(made), bands, made.shape[1] // bands)
    hashed = np.broadcast_to(np.arange(1, bands + 1, dtype=np.uint64), parts.shape[:2])
    for row in range(parts.shape[2]):
        hashed = _mix(hashed ^ parts[:, :, row])
    return hashed


def word_counts(normal: pa.Array) -> np.ndarray:
    """The number of words of each text that ``words`` returned."""
    spaces = pc.count_substring(normal, " ").to_numpy(zero_copy_only=False)
    return spaces + (pc.binary_length(normal).to_numpy(zero_copy_only=False) > 0)


def shingle_sets(normal: pa.Array, ngram: int) -> list[np.ndarray]:
    """The shingles of each text, as sorted 64-bit hashes without repetition.

    Args:
        normal: what ``words`` returned; every text has at least ``ngram`` words.
        ngram: words of a shingle.
    """
    split = pc.split_pattern(normal, " ")
    ends = split.offsets.to_numpy()
    hashed = text_hashes(split.flatten())
    ends = ends - ends[0]
    length = max(0, len(hashed) - ngram + 1)
    grams = np.zeros(length, np.uint64)
    for place in range(ngram):
        grams = _mix(grams ^ hashed[place : place + length])
    return [_distinct(grams[first : last - ngram + 1]) for first, last in itertools.pairwise(ends)]


def jaccard(one: np.ndarray, other: np.ndarray) -> float:
    """The Jaccard similarity of two sets, as ``shingle_sets`` returns them; neither is empty."""
    if len(one) > len(other):
        one, other = other, one
    places = np.searchsorted(other, one)
    places[places == len(other)] = 0
    common = int((other[places] == one).sum())
    return common / (len(one) + len(other) - common)


def _distinct(values: np.ndarray) -> np.ndarray:
    """The values, at least one, sorted and once each. For millions ``np.unique`` of NumPy 2.4 is far slower."""
    values = np.sort(values)
    return values[np.append(True, values[1:] != values[:-1])]


def _mix(values: np.ndarray) -> np.ndarray:
    """A permutation of the 64-bit integers that scatters them (the finaliser of SplitMix64 after a step)."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
