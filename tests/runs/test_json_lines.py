"""Files of JSON lines: which lines count, and the last record read from the end."""

import json

import pytest

from scaling.runs.json_lines import append, last_record, read_lines


def test_lines_that_are_no_records_are_refused(tmp_path):
    path = tmp_path / "evals.jsonl"
    path.write_text('{"loss": 1}\n\n5\n')
    with pytest.raises(ValueError, match=r"evals\.jsonl:3 .*JSON object"):
        read_lines(path)
    path.write_text('{"loss": 1}\n\n{"lo')
    assert read_lines(path) == [{"loss": 1}]
    path.write_bytes(b'{"loss": 1}\n{"task": "\xe9"}\n')
    with pytest.raises(ValueError, match=r"evals\.jsonl .*UTF-8"):
        read_lines(path)


@pytest.mark.parametrize("size", [1, 1000, 40_000])
@pytest.mark.parametrize("tail", ["", '{"loss": 9, "st', "\n\n", '{"loss": 3.5, "step": 7}'])
def test_the_last_record_is_what_reading_all_gives(tmp_path, size, tail):
    """Lines shorter and longer than a block, a torn end, and task results behind the last loss."""
    path = tmp_path / "evals.jsonl"
    assert last_record(path, "loss") is None
    path.write_text("")
    assert last_record(path, "loss") is None
    records = [{"step": i, "loss": 1.5 * i, "text": "\u00e9" * size} for i in range(1, 4)]
    records += [{"step": 4, "task": "t", "text": "x" * size}] * 5
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records) + tail)
    expected = [record for record in read_lines(path) if "loss" in record][-1]
    assert last_record(path, "loss") == expected
    assert last_record(path, "absent") is None


def test_only_the_last_line_may_be_torn(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"loss": 1}\n{"loss"\n{"step": 2}\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl .*JSON"):
        last_record(path, "loss")
    path.write_text('{"loss": 1}\n[2]\n')
    with pytest.raises(ValueError, match="JSON object"):
        last_record(path, "loss")


def test_the_last_record_of_a_long_file_is_read_from_its_end(tmp_path):
    """So that damage at its beginning is not seen."""
    path = tmp_path / "metrics.jsonl"
    lines = [json.dumps({"step": i, "loss": 1 / i}) for i in range(1, 2_001)]
    path.write_text("\n".join(["damaged", *lines, ""]))
    assert last_record(path, "loss") == {"step": 2_000, "loss": 1 / 2_000}
    with pytest.raises(ValueError, match="JSON"):
        read_lines(path)


@pytest.mark.parametrize(("before", "after"), [("", ""), ('{"a": 1}\n{"b"', '{"a": 1}\n'), ('{"a": 1}', '{"a": 1}\n')])
def test_a_line_is_appended_after_whole_lines(tmp_path, before, after):
    path = tmp_path / "evals.jsonl"
    path.write_text(before)
    append(path, [{"step": 1}, {"step": 2}])
    assert path.read_text() == after + '{"step": 1}\n{"step": 2}\n'
