"""The finished runs as a table for other programs, and for ``scaling fit``."""

import csv
import io

from etils import epath

from scaling.laws.runs import COUNTS
from scaling.report.collect import Ladder


def write_points(ladder: Ladder, path: epath.Path) -> None:
    """Writes one row a finished run: its sizes (N by every convention too), its loss, how it was trained.

    ``scaling fit PATH`` fits it as it would the runs themselves.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    knobs = ("num_layers", "d_model", "batch_tokens", "peak_lr", "steps", "seconds")
    writer.writerow(["run", "params", "tokens", "flops", "loss", *knobs, *(f"params_{count}" for count in COUNTS)])
    for entry in ladder.entries:
        if entry.state != "finished":
            continue
        config = entry.run.config
        training = (config["train"]["batch_tokens"], config["optimizer"]["peak_lr"], entry.steps, entry.seconds)
        sizes = (entry.params, entry.tokens, entry.flops, entry.loss)
        counts = (entry.run.num_params(count) for count in COUNTS)
        model = (config["model"]["num_layers"], config["model"]["d_model"])
        writer.writerow([entry.name, *(f"{value:.10g}" for value in (*sizes, *model, *training)), *counts])
    path.write_text(text.getvalue())
