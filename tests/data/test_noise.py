"""What is made of sequences: statistics against their definitions, within three standard errors."""

import numpy as np
import pytest

from scaling.config import schema as cfg
from scaling.data import tokenizer
from scaling.data.noise.by_name import noise_of
from scaling.data.noise.masked import Special, masked
from scaling.data.noise.row import Noise, Noisy
from scaling.objectives.masked import most_hidden

WORDS = tokenizer.load("bytes+mask")
SPECIAL = Special.of(WORDS)
KNOBS = cfg.Noise()


def config(objective="mlm", knobs=KNOBS, length=128, seed=0, document_mask=False):
    return cfg.Config(
        seed=seed, data=cfg.Data(objective=objective), noise=knobs, train=cfg.Train(sequence_length=length),
        model=cfg.Model(document_mask=document_mask),
    )  # fmt: skip


def noise(knobs=KNOBS, **of):
    found = noise_of(config(knobs=knobs, **of), WORDS)
    assert isinstance(found, Noise)
    return found


def sequences(count, length=128, seed=0):
    return list(np.random.default_rng(seed).integers(0, 256, (count, length)).astype(np.int32))


def test_shares_are_bert_s():
    rows = [noise()(sequences(400), i) for i in range(400)]
    tokens, targets, weights = (np.stack([row[i] for row in rows]) for i in range(3))
    hidden = weights == 1
    assert (hidden.sum(1) == round(0.15 * 127)).all()  # the first token stands before the text
    count = hidden.sum()
    shown = tokens[hidden]
    # A random token is the hidden one itself once in 256 times.
    for found, share in (
        ((shown == SPECIAL.mask).mean(), 0.8),
        ((shown == targets[hidden]).mean(), 0.1 + 0.1 / 256),
        (((shown != SPECIAL.mask) & (shown != targets[hidden])).mean(), 0.1 * 255 / 256),
    ):
        assert abs(found - share) < 3 * np.sqrt(share * (1 - share) / count)
    np.testing.assert_array_equal(tokens[~hidden], targets[~hidden])
    where = hidden[:, 1:].mean(0)  # each place is as likely as any other
    assert np.abs(where - 19 / 127).max() < 4.5 * np.sqrt(0.15 * 0.85 / 400)


def test_random_tokens_are_all_ordinary_ones_alike():
    changed = noise(knobs=cfg.Noise(rate=1.0, random=1.0, kept=0.0))
    shown = np.concatenate([changed(sequences(400), i).tokens[1:] for i in range(400)])
    counts = np.bincount(shown, minlength=WORDS.vocab_size)
    assert not counts[SPECIAL.all].any()
    expected = len(shown) / 256
    assert np.square(counts[:256] - expected).sum() / expected < 255 + 3 * np.sqrt(2 * 255)  # chi squared


def test_special_tokens_are_never_hidden():
    texts = [np.where(np.arange(128) % 3 == 0, WORDS.eot, ids).astype(np.int32) for ids in sequences(50)]
    for i in range(50):
        row = noise(knobs=cfg.Noise(rate=1.0))(texts, i)
        assert not row.weights[np.isin(row.targets, SPECIAL.all)].any()
        assert row.weights[~np.isin(row.targets, SPECIAL.all)].all()
    ids = np.full(8, WORDS.eot, np.int32)
    noisy, weights = masked(ids, KNOBS, SPECIAL, np.random.default_rng(0))
    np.testing.assert_array_equal(noisy, ids)
    assert not weights.any()


def test_at_least_one_token_is_hidden_and_never_more_than_the_objective_looks_for():
    for length in (2, 5, 17, 128):
        hidden = {int(noise()(sequences(9, length), i).weights.sum()) for i in range(9)}
        assert min(hidden) >= 1 and max(hidden) <= most_hidden(KNOBS.rate, length)


def test_a_row_is_a_function_of_index_and_seed_alone():
    one, other = noise(seed=3), noise(seed=4)
    texts = sequences(1) * 20
    rows = [one(texts, i).tokens.tobytes() for i in range(20)]
    assert [one(texts, i).tokens.tobytes() for i in reversed(range(20))] == rows[::-1]
    assert len(set(rows)) == 20  # the same text at another index, as in another epoch, has other noise
    assert other(texts, 0).tokens.tobytes() != rows[0]


def test_documents_that_do_not_see_each_other():
    ids = np.array([1, 2, WORDS.eot, 3, 4, 5, WORDS.eot, 6, 7], np.int32)
    row = noise(document_mask=True)([ids], 0)
    np.testing.assert_array_equal(row.segments, [0, 0, 0, 1, 1, 1, 1, 2, 2])
    np.testing.assert_array_equal(row.positions, [0, 1, 2, 0, 1, 2, 3, 0, 1])
    np.testing.assert_array_equal(row.targets, [SPECIAL.begin, *ids[:-1]])


def paired(objective, count=600, length=31):
    texts = sequences(count, length)
    made = noise_of(config(objective, length=length + 2), WORDS)
    return [made(texts, i) for i in range(count)], texts


@pytest.mark.parametrize("objective", ["mlm_nsp", "mlm_sop"])
def test_half_of_the_pairs_are_in_order(objective):
    rows, texts = paired(objective)
    labels = np.array([row.labels[0] for row in rows])
    assert abs(labels.mean() - 0.5) < 3 * np.sqrt(0.25 / len(rows))
    ends = []
    for row, text, label in zip(rows, texts, labels, strict=True):
        assert row.tokens.shape == row.targets.shape == (33,)  # 30 tokens, and three special ones
        first, second = (row.targets[(row.types == kind) & ~np.isin(row.targets, SPECIAL.all)] for kind in (0, 1))
        assert row.targets[0] == SPECIAL.begin and row.reads.tolist() == [1] + [0] * 32
        assert row.targets[len(first) + 1] == row.targets[-1] == SPECIAL.separator
        assert len(first) + len(second) == 30 and min(len(first), len(second)) >= 1
        in_order = np.array_equal(np.concatenate([first, second]), text[:30])
        assert in_order == (label == 0)
        if objective == "mlm_sop" and label == 1:
            np.testing.assert_array_equal(np.concatenate([second, first]), text[:30])
        ends.append(len(first))
        assert row.weights.sum() == round(0.15 * 30)
    assert set(range(1, 30)) == set(ends)


def test_held_out_rows_have_a_length():
    rows = Noisy(sequences(3), noise())
    assert len(rows) == 3
    assert rows[2].tokens.shape == (128,)


def test_a_tokenizer_without_a_mask_is_refused():
    with pytest.raises(ValueError, match=r"'bytes' has no token <\|mask\|>; a name that ends in \+mask gives it one"):
        noise_of(config(), tokenizer.load("bytes"))
    assert noise_of(config("next_token"), tokenizer.load("bytes")) is None


def test_texts_are_framed():
    ids, types = WORDS.framed("ab", "c")
    np.testing.assert_array_equal(ids, [SPECIAL.begin, 97, 98, SPECIAL.separator, 99, SPECIAL.separator])
    np.testing.assert_array_equal(types, [0, 0, 0, 0, 1, 1])
    assert WORDS.framed("ab")[0].tolist() == ids[:4].tolist()
