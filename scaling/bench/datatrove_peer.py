"""The datatrove side of ``scaling.bench.corpus``: its MinHash pipeline on one folder of Parquet files.

A program of its own, run by an interpreter that has datatrove (``pip install datatrove orjson pyarrow spacy xxhash``):
one JSON request in its arguments, one JSON line at the end of its output. Nothing of this package is imported, so that
interpreter needs none of ours.

The four stages are those of datatrove's own example ``minhash_deduplication.py``, one task and one worker each; the
stage of the buckets has one task a bucket, which is the least that datatrove accepts.
"""

import contextlib
import importlib.metadata
import json
import sys
import time
from pathlib import Path
from typing import Any


def main() -> None:
    """Answers ``{"source": folder, "work": folder, "ngram": n, "bands": b, "rows": r}`` with seconds and documents."""
    request = json.loads(sys.argv[1])
    with contextlib.redirect_stdout(sys.stderr):  # datatrove talks
        answer = _deduplicate(**request)
    print(json.dumps(answer), flush=True)


def _deduplicate(source: str, work: str, ngram: int, bands: int, rows: int) -> dict[str, Any]:
    """Times the pipeline, without imports."""
    import pyarrow.parquet as pq
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.dedup import (
        MinhashDedupBuckets,
        MinhashDedupCluster,
        MinhashDedupFilter,
        MinhashDedupSignature,
    )
    from datatrove.pipeline.dedup.minhash import MinhashConfig
    from datatrove.pipeline.readers import ParquetReader
    from datatrove.pipeline.writers import ParquetWriter

    config = MinhashConfig(n_grams=ngram, num_buckets=bands, hashes_per_bucket=rows)
    folder = {name: f"{work}/{name}" for name in ("signatures", "buckets", "remove", "output", "logs")}
    reader = ParquetReader(source, read_metadata=False)
    stages = [
        (1, [reader, MinhashDedupSignature(folder["signatures"], config=config)]),
        (bands, [MinhashDedupBuckets(folder["signatures"], folder["buckets"], config=config)]),
        (1, [MinhashDedupCluster(folder["buckets"], folder["remove"], config=config)]),
        (1, [reader, MinhashDedupFilter(folder["remove"]), ParquetWriter(folder["output"], compression="zstd")]),
    ]
    start, cpu = time.perf_counter(), time.process_time()
    for number, (tasks, pipeline) in enumerate(stages):
        LocalPipelineExecutor(pipeline, tasks=tasks, workers=1, logging_dir=f"{folder['logs']}/{number}").run()
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    kept = sum(pq.read_metadata(path).num_rows for path in Path(folder["output"]).glob("*.parquet"))
    return {"seconds": seconds, "cpu": cpu, "documents": kept, "version": importlib.metadata.version("datatrove")}


if __name__ == "__main__":
    main()
