"""The quality filter of GPT-3 (Brown et al., arXiv 2005.14165, Appendix A).

A logistic regression tells documents of curated data sets from those of raw ones. It reads hashed counts of words
(words as Spark's Tokenizer has them: lower case, split at white space). A document with the score s, the probability
that it is curated, stays if a number drawn from the Pareto distribution with the exponent alpha exceeds 1 - s. NumPy's
``pareto`` is the Lomax distribution, so a document stays with the probability (2 - s)^-alpha: nearly all documents with
high scores stay, and one in 500 of the worst, for diversity. The number is a hash of the seed and the document's id.
``Quality.best`` replaces this rule by a share: the best quarter of the text, say, stays.

The steps, for a build of many parts: ``shares``; ``sample`` for each part, which writes the features of sampled
documents; ``train``, which reads these files and writes the classifier; with ``best``, ``rank`` for each part and
``threshold``; ``stage`` for each part, with what ``load`` gives.
"""

import dataclasses
import hashlib
import io
import json
import math
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import scipy.sparse

from scaling import durable
from scaling.config.knob import knob
from scaling.corpus import documents as parts
from scaling.corpus.filters.logistic import area_under_curve, fit, sigmoid
from scaling.corpus.filters.words import Words, slices, split
from scaling.corpus.outcome import Tally, kept

NORMS = ("l2", "none")
REASON = "low quality"
_LEVELS = 2**16  # of scores, into which ``rank`` counts; bounds its files


@dataclasses.dataclass(frozen=True)
class Quality:
    """Knobs of the quality filter."""

    positives: tuple[str, ...] = knob((), "names", "curated data sets, the positives of the classifier")
    negatives: tuple[str, ...] = knob((), "names", "raw data sets, its negatives; () = all that are no positives")
    classifier: str = knob("", "path", "a classifier of another build, used as it is; empty = train one")
    alpha: float = knob(9.0, "", "exponent of the Pareto distribution; 0 keeps all documents, and only scores them")
    best: float = knob(0.0, "", "share of the text, in bytes, that stays: that of the best scores; 0 = as alpha says")
    features: int = knob(2**18, "", "buckets that words are hashed into")
    norm: str = knob("l2", "", "l2 = counts of a document have the Euclidean norm 1; none = counts, as in Spark")
    characters: int = knob(100_000, "characters", "of a document that are read, from its beginning; bounds memory")
    sample: int = knob(20_000, "documents", "of each class, at most, that the classifier is trained and tested on")
    held_out: float = knob(0.1, "", "share of the sample that is not trained on; the area under the curve is of it")
    penalty: float = knob(1e-5, "", "half of it times the squared norm of the weights is added to the mean loss")
    iterations: int = knob(200, "", "of L-BFGS, at most")
    seed: int = knob(0, "", "of the sample, and of what is kept")

    def __post_init__(self) -> None:
        for name, good, right in (
            ("norm", self.norm in NORMS, f"one of {', '.join(NORMS)}"),
            ("alpha", 0 <= self.alpha < math.inf, "a number that is not negative"),
            ("best", 0 <= self.best <= 1, "from 0 to 1"),
            ("features", 0 < self.features < 2**31, "from 1 to 2^31 - 1"),
            ("characters", self.characters > 0, "positive"),
            ("sample", self.sample > 0, "positive"),
            ("held_out", 0 <= self.held_out < 1, "at least 0 and below 1"),
            ("penalty", 0 <= self.penalty < math.inf, "a number that is not negative"),
            ("iterations", self.iterations > 0, "positive"),
        ):
            if not good:
                raise ValueError(f"quality.{name}={getattr(self, name)!r} must be {right}")
        if both := sorted({*self.positives} & {*self.negatives}):
            raise ValueError(f"the data set {both[0]!r} cannot be in both quality.positives and quality.negatives")

    def classes(self, names: Sequence[str]) -> dict[str, int]:
        """The class of each data set that the classifier is trained on: 1 = curated, 0 = raw.

        Args:
            names: of all data sets.

        Raises:
            ValueError: a name that is no data set, or a class without data sets.
        """
        for name in (*self.positives, *self.negatives):
            if name not in names:
                raise ValueError(f"quality: there is no data set {name!r}, but {', '.join(names)}")
        negatives = self.negatives or tuple(name for name in names if name not in self.positives)
        if not self.positives or not negatives:
            lacking = "negatives" if self.positives else "positives"
            raise ValueError(f"quality.{lacking} names no data set; name some, or give a trained quality.classifier")
        return {name: int(name in self.positives) for name in names if name in (*self.positives, *negatives)}


@dataclasses.dataclass(frozen=True)
class Classifier:
    """A trained classifier.

    Attributes:
        weights: float32 [features].
        bias: of the logit.
        norm, characters: see ``Quality``; those that it was trained with.
    """

    weights: np.ndarray
    bias: float
    norm: str
    characters: int

    def scores(self, texts: pa.ChunkedArray) -> np.ndarray:
        """The probability of each text that it is curated, float64 [n]."""
        found = [np.zeros(0)]
        for features in _features(texts, len(self.weights), self.norm, self.characters):
            found.append(sigmoid(features @ self.weights.astype(np.float64) + self.bias))
        return np.concatenate(found)


def chances(seed: int, purpose: str, ids: pa.ChunkedArray) -> np.ndarray:
    """A number in (0, 1) for each document, float64 [n]: a hash of the seed, the purpose and the document's id."""
    start = hashlib.blake2b(f"{seed}\0{purpose}\0".encode(), digest_size=8)
    found = np.empty(len(ids), np.uint64)
    for place, each in enumerate(ids.to_pylist()):
        one = start.copy()
        one.update(each.encode())
        found[place] = int.from_bytes(one.digest(), "little")
    return ((found >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53


def shares(knobs: Quality, sizes: Mapping[str, int]) -> dict[str, float]:
    """The share of each data set's documents that ``sample`` must take, so that its files stay small.

    A few more than ``knobs.sample`` are taken, since the number in a random sample varies. ``train`` uses the exact
    number.

    Args:
        knobs: see there.
        sizes: number of documents of each data set.
    """
    classes = knobs.classes(tuple(sizes))
    enough = knobs.sample + 6 * math.sqrt(knobs.sample) + 100
    totals = {wanted: sum(sizes[name] for name, each in classes.items() if each == wanted) for wanted in (0, 1)}
    return {name: min(1.0, enough / max(1, totals[each])) for name, each in classes.items()}


def sample(documents: pa.Table, knobs: Quality, share: float, path: Path) -> int:
    """Writes the features of sampled documents of a part.

    Args:
        documents: of a part.
        knobs: see there.
        share: of the documents that are taken, of ``shares``.
        path: the file, in NumPy's ``npz``; equal documents give equal bytes.

    Returns:
        how many were taken.

    Raises:
        OSError: cannot write.
    """
    ranks = chances(knobs.seed, "sample", documents["id"])
    chosen = np.flatnonzero(ranks < share)
    documents = documents.select(["id", "text"]).take(pa.array(chosen))
    features = [*_features(documents["text"], knobs.features, "none", knobs.characters)]
    rows = scipy.sparse.vstack(features, "csr") if features else scipy.sparse.csr_matrix((0, knobs.features))
    _write(
        path,
        ranks=ranks[chosen],
        tests=chances(knobs.seed, "held out", documents["id"]),
        lengths=np.diff(rows.indptr).astype(np.int32),
        buckets=rows.indices.astype(np.int32),
        counts=rows.data.astype(np.float32),
    )
    return len(chosen)


def train(positives: Sequence[Path], negatives: Sequence[Path], knobs: Quality, path: Path) -> dict[str, Any]:
    """Trains the classifier on what ``sample`` wrote, and writes it.

    Both classes have the same weight, however many documents they have, so that a score of 0.5 is in the middle.
    The bytes of the file depend on the documents and knobs, not on the order of the files or the number of threads.

    Args:
        positives: files of curated data sets.
        negatives: files of raw ones.
        knobs: see there.
        path: where the classifier is written.

    Returns:
        ``auc``, the area under the ROC curve of held-out documents (None if a class has none); the number of documents
        ``trained`` and ``tested`` on, [negatives, positives]; ``loss`` and ``iterations`` of the fit.

    Raises:
        ValueError: a class without documents to train on.
        OSError: cannot write.
    """
    features, labels, tested = [], [], []
    for label, paths in enumerate((negatives, positives)):
        rows, tests = _sampled(paths, knobs)
        features.append(rows)
        labels.append(np.full(len(tests), label))
        tested.append(tests < knobs.held_out)
        if tested[-1].all():
            kind = ("negatives", "positives")[label]
            raise ValueError(f"quality: the {kind} have no document to train on, of {len(tests)} that were read")
    rows, y, held = scipy.sparse.vstack(features, "csr"), np.concatenate(labels), np.concatenate(tested)
    weights, bias, loss, iterations = fit(rows[~held], y[~held], knobs.penalty, knobs.iterations)
    made = Classifier(weights.astype(np.float32), float(bias), knobs.norm, knobs.characters)
    save(made, path)
    scores = rows[held] @ made.weights.astype(np.float64) + made.bias
    return {
        "auc": area_under_curve(scores, y[held]),
        "trained": np.bincount(y[~held], minlength=2).tolist(),
        "tested": np.bincount(y[held], minlength=2).tolist(),
        "loss": loss,
        "iterations": iterations,
    }


def rank(documents: pa.Table, classifier: Classifier, path: Path) -> None:
    """Writes how many bytes of text the documents of a part have at each level of the score.

    Args:
        documents: of a part.
        classifier: of ``load``.
        path: the file, as of ``sample``.

    Raises:
        OSError: cannot write.
    """
    levels = _level(classifier.scores(documents["text"]))
    sizes = pc.fill_null(pc.binary_length(documents["text"]), 0).to_numpy()
    _write(path, bytes=np.bincount(levels, sizes, _LEVELS).astype(np.int64))


def threshold(paths: Sequence[Path], best: float) -> int:
    """The highest level such that documents of at least this level have the share ``best`` of the text.

    Documents of one level stay together, so a little more text can stay.

    Args:
        paths: files of ``rank``.
        best: a share of the bytes, above 0.
    """
    sizes = sum((_member(path, "bytes") for path in paths), np.zeros(_LEVELS, np.int64))
    above = np.cumsum(sizes[::-1])
    return _LEVELS - 1 - int(np.searchsorted(above, best * above[-1]))


def stage(
    documents: pa.Table, knobs: Quality, classifier: Classifier, least: int | None = None
) -> tuple[pa.Table, Tally]:
    """Drops documents by their scores, and adds the column ``quality``, float64.

    Args:
        documents: of a part.
        knobs: ``alpha`` and ``seed`` are used.
        classifier: of ``load``.
        least: of ``threshold``; documents of this level and above stay. None = the rule with ``alpha``.
    """
    tally = Tally()
    scores = classifier.scores(documents["text"])
    tally.score("quality", scores.tolist())
    if least is None:
        stays = chances(knobs.seed, "pareto", documents["id"]) < keep_probability(scores, knobs.alpha)
    else:
        stays = _level(scores) >= least
    documents = parts.with_column(documents, "quality", pa.array(scores))
    return kept(documents, np.where(stays, "", REASON).tolist(), tally), tally


def keep_probability(scores: np.ndarray, alpha: float) -> np.ndarray:
    """P(``np.random.pareto(alpha)`` > 1 - score), of each score; 1 for alpha 0."""
    return (2.0 - scores) ** -alpha


def _level(scores: np.ndarray) -> np.ndarray:
    """The level of each score, from 0 to ``_LEVELS`` - 1, int64 [n]: log-odds from -32 to 32 in equal steps.

    Most scores of a good classifier are close to 0 or 1, where steps of the score itself would be too coarse.
    """
    with np.errstate(divide="ignore"):
        odds = np.log(scores) - np.log1p(-scores)
    return ((np.clip(odds, -32, 32) + 32) / 64 * (_LEVELS - 1)).astype(np.int64)


def save(classifier: Classifier, path: Path) -> None:
    """Writes a classifier; equal ones give equal bytes.

    Raises:
        OSError: cannot write.
    """
    settings = {"bias": classifier.bias, "norm": classifier.norm, "characters": classifier.characters}
    _write(path, weights=classifier.weights, settings=np.frombuffer(json.dumps(settings).encode(), np.uint8))


def load(path: Path) -> Classifier:
    """A classifier that ``train`` wrote.

    Raises:
        OSError: cannot read.
        ValueError: it is no such file.
    """
    try:
        with np.load(path, allow_pickle=False) as found:
            settings = json.loads(found["settings"].tobytes())
            return Classifier(found["weights"], settings["bias"], settings["norm"], settings["characters"])
    except (ValueError, KeyError, TypeError, AttributeError, EOFError, zipfile.BadZipFile):
        raise ValueError(f"{path} is no classifier that the stage `quality` wrote") from None


def _features(texts: pa.ChunkedArray, features: int, norm: str, characters: int) -> Iterator[scipy.sparse.csr_matrix]:
    """Hashed counts of words, float64 [documents of a slice, features], for each slice of ``words.slices``."""
    short = texts if _fit(texts, characters) else pc.utf8_slice_codeunits(texts, 0, characters)
    for _, these in slices(short):
        yield _normalised(_counts(split(pc.utf8_lower(these)), features), norm)


def _fit(texts: pa.ChunkedArray, characters: int) -> bool:
    return not len(texts) or pc.max(pc.utf8_length(texts)).as_py() <= characters


def _counts(words: Words, features: int) -> scipy.sparse.csr_matrix:
    """How often a document has words of each bucket; buckets of a document ascend."""
    hashes = [zlib.crc32(word.encode()) for word in words.vocabulary.to_pylist()]
    buckets = (np.array(hashes, np.int64) % features)[words.ids]
    found, counts = np.unique(words.documents * features + buckets, return_counts=True)
    starts = np.searchsorted(found, np.arange(len(words.starts)) * features)
    shape = (len(words.starts) - 1, features)
    return scipy.sparse.csr_matrix((counts.astype(np.float64), found % features, starts), shape=shape)


def _normalised(rows: scipy.sparse.csr_matrix, norm: str) -> scipy.sparse.csr_matrix:
    if norm == "none":
        return rows
    lengths = np.diff(rows.indptr)
    sums = np.bincount(np.repeat(np.arange(len(lengths)), lengths), rows.data**2, minlength=len(lengths))
    rows.data /= np.repeat(np.sqrt(sums), lengths)
    return rows


def _sampled(paths: Sequence[Path], knobs: Quality) -> tuple[scipy.sparse.csr_matrix, np.ndarray]:
    """The sampled documents of a class by rank, at most ``knobs.sample``: features [n, features], test numbers [n].

    Two passes over the files, so that no more features than those of the sample are in memory.
    """
    ranks = np.sort(np.concatenate([np.zeros(0), *(_member(path, "ranks") for path in paths)]))
    last = ranks[min(knobs.sample, len(ranks)) - 1] if len(ranks) else -1.0
    rows, order, tests = [scipy.sparse.csr_matrix((0, knobs.features))], [np.zeros(0)], [np.zeros(0)]
    for path in paths:
        with np.load(path, allow_pickle=False) as found:
            chosen = found["ranks"] <= last
            starts = np.concatenate([[0], np.cumsum(found["lengths"], dtype=np.int64)])
            shape = (len(chosen), knobs.features)
            whole = scipy.sparse.csr_matrix((found["counts"], found["buckets"], starts), shape=shape)
            rows.append(whole[chosen])
            order.append(found["ranks"][chosen])
            tests.append(found["tests"][chosen])
    places = np.argsort(np.concatenate(order), kind="stable")
    together = scipy.sparse.vstack(rows, "csr", dtype=np.float64)[places]
    return _normalised(together, knobs.norm), np.concatenate(tests)[places]


def _member(path: Path, name: str) -> np.ndarray:
    with np.load(path, allow_pickle=False) as found:
        return found[name]


def _write(path: Path, **arrays: np.ndarray) -> None:
    """An ``npz`` file, whole or not at all. NumPy writes a fixed time into it, so equal arrays give equal bytes."""
    content = io.BytesIO()
    np.savez_compressed(content, **arrays)  # type: ignore[arg-type]  # the stub takes the arrays for its own options
    with durable.replaced(path) as partial:
        partial.write_bytes(content.getvalue())
