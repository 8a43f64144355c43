"""Learning from rewards (``scaling align ppo``) killed in each part of an iteration."""

import json
import random
import signal
import sys
from pathlib import Path

from scaling.runs import attempts
from tests.faults.lab import COMMON, SMOKE, Lab, Process, Row, lines, logged, lost_steps, signal_name, weights

EVERY = 2  # save interval
# 30 steps of 16 answers to 16 of 40 prompts, each with two passes over two minibatches; 15 steps in quick runs
KNOBS = (
    "--config.rl.response_tokens=8",
    "--config.rl.minibatches=2",
    "--config.rl.passes=2",
    "--config.rl.kl_target=0.5",
    "--config.rl.kl_horizon=100",
    "--config.train.sequence_length=24",
    "--config.train.batch_tokens=384",
    "--config.train.microbatch_sequences=8",
    "--config.train.ramp_tokens=0",
    "--config.optimizer.peak_lr=0.003",
    "--config.optimizer.warmup_tokens=0",
    "--config.log.every_steps=1",
    "--config.eval.tokens=384",
    "--config.data.validation_fraction=0.2",
    f"--config.eval.every_steps={EVERY}",
    f"--config.checkpoint.every_steps={EVERY}",
    "--config.checkpoint.asynchronous=false",
)
REWARD = "def letters(records, answers):\n    return [answer.count('e') + len(answer) / 8 for answer in answers]\n"

# Before these calls and file operations, each the n-th of its kind in a process. A process answers prompts and has them
# scored once a step, and once in the validation of every second step. It updates the policy and the value function by
# turns, 8 times a step. So each is killed in its fourth step, two steps behind a save, from which the next one goes on.
_PROCEED, _SCORED = "call:scaling.generate.decode.proceed", "call:scaling.align.rl.judges.on_every_device"
_UPDATE = "call made:scaling.align.rl.iteration.make_train_step"
POINTS = {
    "in the rollout, the prompts read": f"{_PROCEED}:5",
    "in the scoring, the function called": f"{_SCORED}:5",
    "between two minibatches": f"{_UPDATE}:29",
    "in a save, the parts beside half written": "open:beside.orbax-checkpoint-tmp/array_metadatas:2",
    "before the first update": f"{_UPDATE}:25",
    "between the policy's update and the value function's": f"{_UPDATE}:32",
    "in the rollout of a validation": f"{_PROCEED}:6",
    "in the scoring of a validation": f"{_SCORED}:6",
    "in a save, the item beside not renamed": "os.rename:beside.orbax-checkpoint-tmp$:2",
    "in a save, the step not renamed": "os.rename:[0-9]{9}.orbax-checkpoint-tmp$:2",
    "in a save, no checksums yet": "open:checksums-00000.json.partial$:2",
}


def _base(lab: Lab) -> Path:
    """A run of byte text to begin with."""
    text = lab.folder / "text.txt"
    text.write_text("the cat sat on the mat. " * 400)
    return lab.reference(
        "--config.data.tokenizer=bytes", f"--config.data.train={text}", "--config.train.tokens=10240",
    )  # fmt: skip


def _start(lab: Lab, run_dir: Path, base: Path, epochs: int, killed_at: str = "") -> Process:
    folder = lab.folder
    dice = random.Random(0)
    records = [{"prompt": "".join(dice.choices("abcd", k=5))} for _ in range(50)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    (folder / "reward.py").write_text(REWARD)
    module = ["tests.faults.killed", killed_at] if killed_at else ["scaling"]
    given = (
        f"--config={SMOKE}",
        f"--config.workdir={run_dir}",
        f"--config.start={base}",
        "--config.data.tokenizer=",
        f"--config.data.train={folder}/prompts.jsonl",
        f"--config.rl.reward={folder}/reward.py:letters",
        f"--config.rl.pretraining={folder}/text.txt",
        f"--config.align.epochs={epochs}",
    )
    return lab.watch(Process([sys.executable, "-m", *module, "align", "ppo", *given, *COMMON, *KNOBS], run_dir))


def killed(lab: Lab) -> Row:
    """Kills at each point, one process after the other in one run, which then ends by itself."""
    row = Row(
        "SIGKILL of PPO in rollout, scoring, minibatches, save",
        "all metrics, weights, moments, mean of weights, value function and KL coefficient bit-identical; at most the "
        "interval lost",
    )
    base, reference, run_dir = _base(lab), lab.new("rewards-reference"), lab.new("rewards-killed")
    names = list(POINTS)[: lab.some(len(POINTS), 4)]
    epochs = lab.some(12, 6)
    process = _start(lab, reference, base, epochs)
    if not row.check(process.wait() == 0, f"uninterrupted: {process.last_line}"):
        return row
    for name in names:
        lab.note(name)
        process = _start(lab, run_dir, base, epochs, POINTS[name])
        code = process.wait()
        row.check(code == -signal.SIGKILL, f"{name}: ended with {signal_name(code)}: {process.last_line}")
        row.cases += 1
    row.check(0 < logged(run_dir) < logged(reference), f"the last kill came at step {logged(run_dir)}")
    begun = [attempt.first_step for attempt in attempts.read(run_dir)]
    row.check(begun == [EVERY * i for i in range(len(names))], f"the processes began behind the steps {begun}")
    process = _start(lab, run_dir, base, epochs)
    row.check(process.wait() == 0, f"after the kills: {process.last_line}")
    row.check_same(run_dir, reference, "after kills")
    row.check(lines(run_dir, "answers.jsonl") == lines(reference, "answers.jsonl"), "answers.jsonl differs")
    kinds = {"['params']", "['beside']['ema']", "['beside']['value']", "['beside']['kl']"}
    saved = weights(run_dir)
    row.check(all(any(name.startswith(kind) for name in saved) for kind in kinds), f"saved: {sorted(saved)}")
    coefficients = {line["objective/kl_coefficient"] for line in lines(reference)}
    row.check(len(coefficients) > 2, "the coefficient of the divergence does not change")
    lost = lost_steps(run_dir)
    row.check(max(lost) <= EVERY, f"{max(lost)} steps were lost, with a save every {EVERY}")
    row.figures = (
        f"{logged(run_dir)} iterations of 4 updates each; lost at worst {max(lost)} steps, interval {EVERY}; "
        f"the coefficient went from {lines(reference)[0]['objective/kl_coefficient']:.3g} to "
        f"{lines(reference)[-1]['objective/kl_coefficient']:.3g}"
    )
    return row
