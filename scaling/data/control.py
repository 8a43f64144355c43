"""Control codes: which text of a token stream belongs to which code (CTRL, arXiv 1909.05858, section 3).

Every document of such a stream begins with the tokens of its code. Behind the tokens of each record of a shard stand
the numbers of the codes of the documents in it, so that a sequence that begins inside a document can begin with its
code, too.
"""

import numpy as np

MOST = 1 << 16  # codes of a stream; their numbers are stored like tokens


def trailer(tokens: np.ndarray, numbers: np.ndarray, eot: int) -> np.ndarray:
    """What stands behind the tokens of a record: the number of its first document, and of each that begins in it.

    Args:
        tokens: of the record [n].
        numbers: of each token's code [n].
        eot: the token that ends a document.
    """
    starts = np.flatnonzero(tokens[:-1] == eot) + 1
    return numbers[np.concatenate([[0], starts])].astype(tokens.dtype)


def number_at(record: np.ndarray, size: int, place: int, eot: int) -> int:
    """The number of the code at a token of a record.

    Args:
        record: tokens, and what stands behind them.
        size: number of tokens.
        place: of the token.
        eot: the token that ends a document.
    """
    return int(record[size + np.count_nonzero(record[:place] == eot)])


def entries(tokens: np.ndarray, eot: int) -> int:
    """Length of the trailer of these tokens."""
    return 1 + int(np.count_nonzero(tokens[:-1] == eot))


def conditioned(sequence: np.ndarray, code: tuple[int, ...], eot: int) -> np.ndarray:
    """The sequence, with its first tokens replaced by the code; as it is where a document ends within these."""
    if not np.any(sequence[: len(code)] == eot):
        sequence[: len(code)] = code
    return sequence
