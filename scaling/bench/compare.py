"""Our timings and the peer's as lines of text."""

import statistics
from collections.abc import Sequence

from scaling.bench.quiet import QUIET, Timing, quiet


def median(timings: Sequence[Timing]) -> float:
    """Median seconds of the quiet timings, or of all if none is quiet."""
    return statistics.median(timing.seconds for timing in quiet(list(timings)))


def speed(timings: Sequence[Timing], tokens: int) -> str:
    """Tokens a second and milliseconds a call of ``tokens`` tokens."""
    calm = len(quiet(list(timings)))
    loud = "" if any(timing.others < QUIET for timing in timings) else ", NONE of them quiet"
    best = min(timing.seconds for timing in timings)
    return (
        f"{tokens / median(timings):,.1f} tokens/s, {1e3 * median(timings):,.0f} ms "
        f"(median of {calm} of {len(timings)}{loud}; best {1e3 * best:,.0f} ms)"
    )


def ratio(ours: Sequence[Timing], theirs: Sequence[Timing]) -> str:
    """How many times faster we are: above 1, the peer is slower."""
    if not ours[0].shared:
        return f"  times faster, medians: {median(theirs) / median(ours):.2f}"
    pairs = [their.seconds / our.seconds for our, their in zip(ours, theirs, strict=True)]
    cpu = statistics.median(t.cpu for t in theirs) / statistics.median(t.cpu for t in ours)
    return (
        f"  times faster, medians of quiet calls: {median(theirs) / median(ours):.2f}; call by call "
        f"{statistics.median(pairs):.2f} ({min(pairs):.2f} to {max(pairs):.2f}); by CPU time {cpu:.2f}"
    )
