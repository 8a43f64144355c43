"""The loss curve of one run, from its metrics.jsonl alone: no accelerator, no model code."""

import io
import json
import sys
from typing import Any

from etils import epath

_TAIL = 1 << 14  # bytes read at a time from the end of a file


class Unreadable(ValueError):
    """JSON that is well-formed, but that Python does not read."""


def parse_json(text: str | bytes, where: str) -> Any:
    """The value of a JSON text.

    Raises:
        Unreadable: an integer of too many digits, or values inside each other too deeply; names ``where``.
        ValueError: any other text that is not JSON.
    """
    try:
        return json.loads(text)
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise
    except RecursionError:
        raise Unreadable(f"{where} has lists or objects inside each other too deeply to be read") from None
    except ValueError:
        digits = sys.get_int_max_str_digits()
        raise Unreadable(f"{where} has an integer of more than {digits} digits; mend or delete it") from None


def read_lines(path: epath.Path) -> list[dict[str, Any]]:
    """Records of a .jsonl file; blank lines and a torn last one (the run was killed while writing) are left out.

    Raises:
        ValueError: a line in the middle is not JSON, or one is no object or ``Unreadable``.
    """
    if not path.exists():
        return []
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text (byte {error.start}); the file is damaged") from None
    lines = [(number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    records = []
    for number, line in lines:
        try:
            record = parse_json(line, f"{path}:{number}")
        except Unreadable:
            raise
        except ValueError:
            if number == lines[-1][0]:
                break
            raise ValueError(f"{path}:{number} is not JSON; the file is damaged") from None
        if not isinstance(record, dict):
            raise ValueError(f"{path}:{number} is not a JSON object; the file is damaged")
        records.append(record)
    return records


def last_record(path: epath.Path, key: str) -> dict[str, Any] | None:
    """The last record of a .jsonl file that has ``key``, read from its end; None where there is none.

    What ``read_lines`` gives last, but for damage further up, which is not seen. Local files only.

    Raises:
        ValueError: a line that was read, and is not the last, is not JSON, or one is no object or ``Unreadable``.
    """
    if not path.exists():
        return None
    with path.open("rb") as file:
        end = file.seek(0, io.SEEK_END)
        torn, rest = True, b""  # only the last line may be torn; rest: the later part of the line that is being read
        while end:
            begin = max(0, end - _TAIL)
            file.seek(begin)
            block = file.read(end - begin) + rest
            rest, *lines = block.split(b"\n") if begin else [b"", *block.split(b"\n")]
            for line in reversed(lines):
                if not line.strip():
                    continue
                try:
                    record = parse_json(line, f"{path}, in a line near its end,")
                except Unreadable:
                    raise
                except ValueError:
                    if not torn:
                        raise ValueError(f"{path} has a line that is not JSON; the file is damaged") from None
                    record = {}
                torn = False
                if not isinstance(record, dict):
                    raise ValueError(f"{path} has a line that is not a JSON object; the file is damaged")
                if key in record:
                    return record
            end = begin
    return None


def is_number(value: Any) -> bool:
    """Whether a value of a record is a finite number that is not negative; booleans are none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= sys.float_info.max


def is_sound(record: dict[str, Any]) -> bool:
    """Whether a record says after how many steps and tokens the loss was what; tokens and loss are positive."""
    return (
        all(is_number(record.get(key)) for key in ("step", "tokens", "loss")) and record["tokens"] * record["loss"] > 0
    )


def plot(run_dir: epath.PathLike) -> epath.Path:
    """Draws training and validation loss against tokens to ``loss.png`` in the run directory.

    Raises:
        ValueError: the run has no logged step yet.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    from scaling.laws.report.style import plain

    run_dir = epath.Path(run_dir)
    steps = [record for record in read_lines(run_dir / "metrics.jsonl") if is_sound(record)]
    evals = [record for record in read_lines(run_dir / "evals.jsonl") if is_sound(record)]  # tasks have no loss
    if not steps:
        raise ValueError(f"{run_dir} has no logged step (metrics.jsonl is missing or empty); is it a run directory?")
    figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
    axes.plot([r["tokens"] for r in steps], [r["loss"] for r in steps], color="#7aa6c2", lw=1, label="training")
    if evals:
        label = f"validation, {evals[-1]['loss']:.3f} at the end"
        axes.plot([r["tokens"] for r in evals], [r["loss"] for r in evals], "o-", color="#c23b22", ms=4, label=label)
    axes.set(xlabel="tokens", ylabel="loss (nats/token)", title=plain(run_dir.name))
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    path = run_dir / "loss.png"
    picture = io.BytesIO()
    figure.savefig(picture, dpi=150)
    plt.close(figure)
    path.write_bytes(picture.getvalue())
    return path
