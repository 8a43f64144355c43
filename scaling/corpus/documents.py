"""Documents on their way through the stages: the columns of a table, and the Parquet files that hold them.

A part is a Parquet file with some tens of megabytes of text. Every stage reads the parts of a folder and writes parts
of the same names, so a document keeps its place, and the bytes of a part depend on the documents alone.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from scaling import durable

# Every document has these columns. Stages add others (``language``, ``quality``, ...) after them.
COLUMNS = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),  # unique in the corpus
        pa.field("text", pa.large_string(), nullable=False),
        pa.field("file", pa.string(), nullable=False),  # that the document was read from
        pa.field("place", pa.int64(), nullable=False),  # byte offset, line or row in it, as its format has it
        pa.field("url", pa.string(), nullable=False),  # "" = none
    ]
)


def table(columns: Mapping[str, Sequence[Any]], more: pa.Schema | None = None) -> pa.Table:
    """A table of documents.

    Args:
        columns: of ``COLUMNS`` and ``more``, all of one length.
        more: further columns.
    """
    fields = [*COLUMNS, *(more or ())]
    return pa.table([pa.array(columns[field.name], field.type) for field in fields], schema=pa.schema(fields))


def with_column(documents: pa.Table, name: str, values: pa.Array | pa.ChunkedArray) -> pa.Table:
    """The documents with one more column, or with other values in it."""
    field = pa.field(name, values.type, nullable=False)
    if name in documents.column_names:
        return documents.set_column(documents.column_names.index(name), field, values)
    return documents.append_column(field, values)


def write(documents: pa.Table, path: Path) -> None:
    """Writes a part; a file of that name is replaced, whole or not at all. Equal documents give equal bytes.

    Raises:
        OSError: cannot write.
    """
    # Texts hardly repeat: with a dictionary of them, a part takes three times as long to read.
    settings: dict[str, Any] = {"compression": "zstd", "row_group_size": 4096, "use_dictionary": ["file", "url"]}
    with durable.replaced(path) as partial:
        pq.write_table(documents.combine_chunks(), partial, **settings)


def read(path: Path) -> pa.Table:
    """The documents of a part.

    Raises:
        ValueError: the file is damaged or has other columns.
    """
    try:
        found = pq.read_table(path)
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path} is no whole Parquet file ({str(error).splitlines()[0]}); delete it") from None
    if missing := [name for name in COLUMNS.names if name not in found.column_names]:
        raise ValueError(f"{path} has no column {missing[0]!r}: it holds no documents of a corpus")
    return found


def rows(path: Path) -> int:
    """How many documents a part has.

    Raises:
        ValueError: the file is damaged.
    """
    try:
        return int(pq.read_metadata(path).num_rows)
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path} is no whole Parquet file ({str(error).splitlines()[0]}); delete it") from None


def text_bytes(documents: pa.Table, column: str = "text") -> int:
    """Bytes of a column's texts, in UTF-8."""
    return pc.sum(pc.binary_length(documents[column])).as_py() or 0
