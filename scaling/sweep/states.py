"""Names of the states of a run, for sweeps, launchers and ``scaling status``."""

WAITING = "waiting"  # to be started, for the first time or again
RUNNING = "running"
FINISHED = "finished"  # trained to its end
FAILED = "failed"  # it would fail again
STOPPED = "stopped"  # by a signal; the same command resumes it
