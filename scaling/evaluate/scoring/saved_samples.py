"""Reads ``RUN/samples/TASK-SHOTS.jsonl``, which ``scaling evaluate --save_samples`` writes."""

import dataclasses
import re
from collections.abc import Mapping

from etils import epath

from scaling.runs.json_lines import is_number, read_lines
from scaling.runs.paths import SAMPLES


@dataclasses.dataclass(frozen=True)
class SavedSample:
    where: str  # for messages
    id: str
    expected: str
    scores: Mapping[str, float]


def read_samples(run: epath.Path, task: str) -> dict[int, list[SavedSample]]:
    """The samples of a task by its number of shots; none where there are no files.

    Raises:
        ValueError: a malformed file.
    """
    found = {}
    for path in sorted((run / SAMPLES).glob(f"{task}-*.jsonl")):
        shots = re.fullmatch(re.escape(task) + r"-(\d+)\.jsonl", path.name)
        if shots:  # otherwise it belongs to a task whose name begins with this one's
            records = enumerate(read_lines(path), start=1)
            found[int(shots[1])] = [_sample(f"{path}:{number}", record) for number, record in records]
    return found


def _sample(where: str, record: Mapping[str, object]) -> SavedSample:
    item, expected, scores = (record.get(key) for key in ("id", "expected", "scores"))
    if not isinstance(item, str) or not isinstance(expected, str) or not isinstance(scores, dict):
        raise ValueError(f"{where} must have id, expected and scores, as `scaling evaluate --save_samples` writes them")
    return SavedSample(where, item, expected, {name: value for name, value in scores.items() if is_number(value)})
