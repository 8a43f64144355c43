"""The states of a run, as sweeps, launchers and ``scaling status`` name them."""

WAITING = "waiting"  # to be started, for the first time or again
RUNNING = "running"
FINISHED = "finished"  # trained to its end
FAILED = "failed"  # and would fail again
STOPPED = "stopped"  # by a signal; the same command goes on
