import math

import pyarrow as pa
import pytest

from scaling.corpus import documents
from scaling.corpus.filters.votes import Votes, votes


def test_documents_with_too_few_or_unknown_votes_are_dropped_and_counted():
    numbers = [3.0, 2.9, math.nan, 100.0, -5.0]
    n = len(numbers)
    columns = dict(id=list("abcde"), text=[""] * n, file=[""] * n, place=range(n), url=[""] * n)
    table = documents.table(columns).append_column("votes", pa.array(numbers))
    kept, tally = votes(table, Votes())
    assert kept["id"].to_pylist() == ["a", "d"]
    assert tally.counts == {"too few votes": 2, "number of votes unknown": 1}
    assert votes(table, Votes(least=-10))[0].num_rows == 4
    with pytest.raises(ValueError, match="votes_key"):
        votes(documents.table(columns), Votes())
