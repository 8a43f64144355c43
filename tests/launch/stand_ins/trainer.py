"""A stand-in for ``scaling train`` on a TPU VM: what each start of a run does stands in $STAND_IN/behaviour.json.

{run: [what start 1 does, what start 2 does, ...]}, the last for all later ones: an exit code, "serve" (until SIGTERM)
or [step to log, then]. Steps outlive the machines, like a bucket.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

root = Path(os.environ["STAND_IN"])
plan = Path(sys.argv[-1].removeprefix("--config="))
assert sys.argv[1:4] == ["-m", "scaling", "train"] and json.loads(plan.read_text())["workdir"].startswith("gs://")
run, host = plan.parent.name, os.environ["HOST"]
count = root / f"starts-{run}-{host}"
number = int(count.read_text()) + 1 if count.exists() else 1
count.write_text(str(number))
behaviour = json.loads((root / "behaviour.json").read_text()).get(run, [0])
what = behaviour[min(number, len(behaviour)) - 1]
if isinstance(what, list):
    print(f"step {what[0]}/100  loss 1.0", file=sys.stderr, flush=True)
    what = what[1]
if what == "serve":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    (root / f"serving-{run}-{host}").write_text(str(os.getpid()))
    time.sleep(120)
    sys.exit(1)
print(f"{run} ends with {what}", file=sys.stderr, flush=True)
sys.exit(what)
