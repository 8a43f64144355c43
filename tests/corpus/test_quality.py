"""GPT-3's quality filter: its classifier, its sample, and the curve of what it keeps."""

import dataclasses
import gzip
import json
import re
import zlib

import numpy as np
import pyarrow as pa
import pytest
import scipy.optimize
import scipy.sparse

from scaling.corpus import documents as parts
from scaling.corpus.filters import logistic, quality
from scaling.corpus.filters.quality import Classifier, Quality
from tests.shared import SHARED, needs_shared

KNOBS = Quality(positives=("books",), negatives=("web",), features=2**12, sample=400)


def table(texts, name="d"):
    columns = {"id": [f"{name}{n}" for n in range(len(texts))], "text": list(texts)}
    rest = {"file": [name] * len(texts), "place": list(range(len(texts))), "url": [""] * len(texts)}
    return parts.table(columns | rest)


def prose(kind, count, seed):
    """Texts of words of which a third tell the kind."""
    random = np.random.default_rng(seed)
    words = np.array([f"{kind}{n}" for n in range(20)] + [f"any{n}" for n in range(40)])
    return [" ".join(random.choice(words, random.integers(5, 60))) for _ in range(count)]


def trained(folder, cuts, reverse=False):
    """The report and the bytes of a classifier, of the same documents cut into parts at ``cuts``."""
    files = {}
    for name in ("books", "web"):
        whole = table(prose(name[0], 600, len(name)), name)
        edges = [0, *cuts, len(whole)]
        paths = [folder / f"{name}-{part}.npz" for part in range(len(edges) - 1)]
        for path, first, last in zip(paths, edges, edges[1:], strict=False):
            quality.sample(whole.slice(first, last - first), KNOBS, 1.0, path)
        files[name] = paths[::-1] if reverse else paths
    report = quality.train(files["books"], files["web"], KNOBS, folder / "classifier.npz")
    return report, (folder / "classifier.npz").read_bytes()


def test_documents_stay_at_the_rate_of_the_pareto_rule():
    """At each score, the share kept is (2 - s)^-9, and that of NumPy's pareto, within three standard errors."""
    logits = np.linspace(-6, 6, 13)
    weights = np.zeros(2**12, np.float32)
    for place, logit in enumerate(logits):
        weights[zlib.crc32(f"w{place}".encode()) % len(weights)] = logit
    classifier = Classifier(weights, 0.0, "l2", 1000)
    many = 4000
    documents = table([f"W{place}" for place in range(len(logits))] * many)
    kept, tally = quality.stage(documents, Quality(seed=3), classifier)
    scores = logistic.sigmoid(logits)
    expected = (2 - scores) ** -9
    found = np.bincount([int(text[1:]) for text in kept["text"].to_pylist()], minlength=len(logits)) / many
    drawn = np.random.default_rng(0).pareto(9, (many, len(logits))) > 1 - scores
    error = np.sqrt(expected * (1 - expected) / many)
    assert (np.abs(found - expected) < 3 * error).all()
    assert (np.abs(found - drawn.mean(0)) < 3 * np.sqrt(2) * error).all()
    assert np.ptp(expected) > 0.9
    assert tally.counts == {"low quality": len(documents) - len(kept)}
    assert sum(tally.histograms["quality"]) == len(documents)
    np.testing.assert_allclose(
        kept["quality"].to_numpy(), scores[[int(text[1:]) for text in kept["text"].to_pylist()]], rtol=1e-6
    )


def test_the_best_share_of_the_text_stays(tmp_path):
    """Longer documents have higher scores here, so the share is of bytes and not of documents."""
    weights = np.zeros(2**12, np.float32)
    for place in range(100):
        weights[zlib.crc32(f"w{place}".encode()) % len(weights)] += (place - 50) / 10
    classifier = Classifier(weights, 0.0, "none", 10_000)
    documents = table([f"W{place} " + "x" * 10 * place for place in range(100)])
    documents = documents.take(pa.array(np.random.default_rng(0).permutation(100)))
    halves = documents.slice(0, 50), documents.slice(50)
    for number, half in enumerate(halves):
        quality.rank(half, classifier, tmp_path / f"{number}.npz")
    files = [tmp_path / "0.npz", tmp_path / "1.npz"]
    scores, sizes = classifier.scores(documents["text"]), np.array([*map(len, documents["text"].to_pylist())])
    for best in (0.01, 0.25, 0.5, 1.0):
        least = quality.threshold(files, best)
        kept = pa.concat_tables([quality.stage(half, KNOBS, classifier, least)[0] for half in halves])
        stays = np.isin(documents["id"].to_pylist(), kept["id"].to_pylist())
        assert stays.all() if best == 1 else scores[stays].min() > scores[~stays].max()
        # Without its worst document, less than the share would stay.
        assert sizes[stays].sum() - sizes[stays & (scores == scores[stays].min())].sum() < best * sizes.sum()
        assert sizes[stays].sum() >= best * sizes.sum()
    assert quality.threshold(files[::-1], 0.25) == quality.threshold(files, 0.25)


def test_what_stays_depends_on_seed_and_id_alone():
    classifier = Classifier(np.zeros(8, np.float32), 1.0, "l2", 1000)
    documents = table(["a b"] * 500)
    order = np.random.default_rng(0).permutation(500)
    kept = [
        set(quality.stage(each, Quality(seed=seed), classifier)[0]["id"].to_pylist())
        for each, seed in ((documents, 0), (documents.take(pa.array(order)), 0), (documents, 1))
    ]
    assert kept[0] == kept[1] != kept[2]
    draws = [quality.chances(0, purpose, documents["id"]) for purpose in ("pareto", "sample", "held out")]
    assert np.abs(np.corrcoef(draws) - np.eye(3)).max() < 0.15
    everything, tally = quality.stage(documents, Quality(alpha=0.0), classifier)
    assert len(everything) == 500 and not tally.counts and "quality" in everything.column_names


def test_the_classifier_depends_on_the_documents_alone(tmp_path):
    report, content = trained(tmp_path, [])
    assert trained(tmp_path, [100, 100, 350], reverse=True) == (report, content)
    assert [a + b for a, b in zip(report["trained"], report["tested"], strict=True)] == [400, 400]
    assert 10 < report["tested"][0] < 90 and report["auc"] > 0.95
    found = quality.load(tmp_path / "classifier.npz")
    quality.save(found, tmp_path / "again.npz")
    assert (tmp_path / "again.npz").read_bytes() == content
    good, bad = (found.scores(table(prose(kind, 50, 9))["text"]) for kind in "bw")
    assert good.mean() > 0.8 > 0.2 > bad.mean()
    assert not found.scores(table([])["text"]).size


def test_features_are_counts_of_lower_case_words():
    rows = next(quality._features(table(["The  cat\n the\u3000CAT the", "", "  "])["text"], 2**12, "none", 100))
    words = {zlib.crc32(word.encode()) % 2**12: count for word, count in (("the", 3), ("cat", 2))}
    assert dict(zip(rows[0].indices.tolist(), rows[0].data.tolist(), strict=True)) == words
    assert rows.shape == (3, 2**12) and rows[1:].nnz == 0
    (cut,) = quality._features(table(["the cat the"])["text"], 2**12, "l2", 7)
    np.testing.assert_allclose(cut.data, [2**-0.5] * 2)


def test_few_more_documents_are_sampled_than_are_needed(tmp_path):
    knobs = dataclasses.replace(KNOBS, negatives=(), sample=100)
    sizes = {"books": 50, "web": 3000, "more": 1000}
    shares = quality.shares(knobs, sizes)
    assert shares["books"] == 1.0 and shares["web"] == shares["more"]
    taken = sum(
        quality.sample(table(["a"] * sizes[name], name), knobs, shares[name], tmp_path / name) for name in sizes
    )
    assert 150 <= taken <= 50 + 320


@pytest.mark.parametrize("penalty", [1e-2, 1e-4])
def test_the_fit_is_the_minimum(penalty):
    random = np.random.default_rng(0)
    rows, labels = random.normal(size=(60, 8)), np.repeat([0, 1], [45, 15])
    rows[labels == 1] += 0.5
    weights, bias, loss, iterations = logistic.fit(scipy.sparse.csr_matrix(rows), labels, penalty, 200)
    share = np.where(labels == 1, 0.5 / 15, 0.5 / 45)

    def value(at):
        margins = (2 * labels - 1) * (rows @ at[:-1] + at[-1])
        return share @ np.logaddexp(0, -margins) + penalty / 2 * at[:-1] @ at[:-1]

    best = scipy.optimize.minimize(value, np.zeros(9), tol=1e-12)
    assert loss == pytest.approx(best.fun, rel=1e-6) and 3 < iterations < 200
    np.testing.assert_allclose([*weights, bias], best.x, atol=2e-3)


def test_the_area_under_the_curve():
    random = np.random.default_rng(0)
    scores, labels = random.integers(0, 6, 80), random.integers(0, 2, 80)
    pairs = np.sign(scores[labels == 1][:, None] - scores[labels == 0])
    assert logistic.area_under_curve(scores, labels) == pytest.approx((1 + pairs.mean()) / 2)
    assert logistic.area_under_curve(scores, np.ones(80, int)) is None


@pytest.mark.parametrize(
    ("knobs", "said"),
    [
        ({"norm": "l1"}, r"quality.norm='l1' must be one of l2, none"),
        ({"held_out": 1.0}, r"quality.held_out=1.0 must be"),
        ({"alpha": float("nan")}, r"quality.alpha=nan"),
        ({"positives": ("a",), "negatives": ("a",)}, "'a' cannot be in both"),
    ],
)
def test_knobs_that_cannot_be_used(knobs, said):
    with pytest.raises(ValueError, match=said):
        Quality(**knobs)


def test_data_sets_that_cannot_be_used(tmp_path):
    with pytest.raises(ValueError, match="no data set 'books', but web"):
        KNOBS.classes(("web",))
    with pytest.raises(ValueError, match=r"quality.positives names no data set"):
        Quality().classes(("web",))
    with pytest.raises(ValueError, match=r"quality.negatives names no data set"):
        Quality(positives=("web",)).classes(("web",))
    quality.sample(table([]), KNOBS, 1.0, tmp_path / "none.npz")
    quality.sample(table(["a"]), KNOBS, 1.0, tmp_path / "one.npz")
    with pytest.raises(ValueError, match="the negatives have no document to train on, of 0"):
        quality.train([tmp_path / "one.npz"], [tmp_path / "none.npz"], KNOBS, tmp_path / "classifier.npz")
    assert not (tmp_path / "classifier.npz").exists()
    for wrong in (tmp_path / "one.npz", tmp_path / "text"):
        (tmp_path / "text").write_text("text")
        with pytest.raises(ValueError, match="is no classifier"):
            quality.load(wrong)
    with pytest.raises(FileNotFoundError):
        quality.load(tmp_path / "nothing")


def records(path):
    with gzip.open(SHARED / "data" / path, "rt") as lines:
        return [json.loads(line)["text"] for line in lines]


@needs_shared("data/books")
def test_curated_text_is_told_from_the_web(tmp_path):
    books = [re.sub(r"(?s)^.*?\*\*\* ?START OF.*?\*\*\*|\*\*\* ?END OF.*$", "", text)[:20_000] for text in
             records("books/gutenberg_books.jsonl.gz")[:50]]  # fmt: skip
    knobs = Quality(held_out=0.2, features=2**16)
    quality.sample(table(books + records("wikipedia/enwiki_sample.jsonl.gz")[:800]), knobs, 1.0, tmp_path / "good.npz")
    quality.sample(table(records("c4/c4_en_sample.jsonl.gz"), "web"), knobs, 1.0, tmp_path / "raw.npz")
    report = quality.train([tmp_path / "good.npz"], [tmp_path / "raw.npz"], knobs, tmp_path / "classifier.npz")
    assert report["auc"] > 0.95
