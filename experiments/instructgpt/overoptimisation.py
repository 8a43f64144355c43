r"""Over-optimisation of a learned reward (Gao, Schulman and Hilton, arXiv 2210.10760), where a program is the true one.

    python experiments/instructgpt/overoptimisation.py FOLDER --sft=RUN --prompts='prompts.jsonl.gz'

A reward model learns a proxy of the gold reward from comparisons, and a policy is optimised against the proxy: by PPO,
and as the best of n answers. The stages leave their files in FOLDER, and the same command goes on where it ended:

1. ``held_out.jsonl`` and ``train.jsonl``: the prompts, shuffled; those that are too long are left out.
2. ``comparisons.jsonl``: answers of the SFT run; of each prompt two that differ in gold reward, the better one chosen.
3. ``proxy_250`` and so on: a reward model of the first 250 comparisons, and of more.
4. ``ppo_250`` and so on: PPO against each, without a penalty for the divergence, as in the paper; each validation logs
   the gold reward of the same answers (``config.rl.gold``).
5. ``answers.jsonl``: 64 answers of the SFT run to each held-out prompt; ``scores_*.npy``: their rewards.
6. ``overoptimisation.json``, ``.png``, ``.svg`` and ``table.md``: the fits of the paper's forms, figure and table.

Rewards are given over the mean of the SFT run's answers, in standard deviations of its answers. Of the best of n the
intervals are by resampling prompts, of PPO by resampling validations, which are of one training alone.

Default sizes: 4,000 comparisons, each of 4 answers; 3 trainings of 100 iterations of 32 answers; 128 held-out prompts;
24 tokens an answer. That is about 0.4M drawn tokens for comparisons, 0.2M for the best of n and 0.3M for PPO.
Machine: 2 CPU cores for a model of 5.8M parameters, about an hour. Rewards: docs/results/overoptimisation.
"""

import argparse
import dataclasses
import itertools
import json
import random
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from etils import epath

from scaling import durable
from scaling.align import rewards
from scaling.data.chat import prompts as chat_prompts
from scaling.data.chat.dialogues import Skipped
from scaling.data.chat.prompts import Prompt
from scaling.generate.answers import Answers
from scaling.generate.generator import Generator
from scaling.generate.sampling import Sampling
from scaling.interop.served import load_served
from scaling.laws.overoptimisation import Fit, best_of_n, best_of_n_kl, fit_over_points, fit_over_prompts
from scaling.report.reward_figures import KL_LABEL
from scaling.report.style import Colours, Drawing, canvas
from scaling.runs.json_lines import JsonLines, read_lines

HERE = Path(__file__).parent
GOLD = f"{HERE.parent / 'rewards' / 'positive.py'}:reward"
SIZES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)  # of the best of n
BATCH = 64  # answers computed at a time
ROWS = 32  # answers of an iteration of PPO


@dataclasses.dataclass(frozen=True)
class Setup:
    """What decides the numbers; the help of the command line says what each is."""

    sft: str
    prompts: str
    gold: str
    comparisons: tuple[int, ...]
    drawn: int
    iterations: int
    every: int
    held_out: int
    answers: int
    tokens: int
    room: int
    reward_lr: float
    ppo_lr: float
    seed: int


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the stages that are not done."""
    folder, setup = parsed(arguments)
    folder.mkdir(parents=True, exist_ok=True)
    check_same(folder, setup)
    stages = (split_prompts, compare, train_proxies, optimise, answer_held_out, score_answers, summarise)
    for stage in stages:
        begin = time.perf_counter()
        stage(folder, setup)
        print(f"{stage.__name__}: {time.perf_counter() - begin:.0f} s", flush=True)


def parsed(arguments: Sequence[str] | None) -> tuple[Path, Setup]:
    """The folder and the sizes of the command line."""
    parser = argparse.ArgumentParser(description="gold and proxy reward against the divergence")
    add = parser.add_argument
    add("folder", type=Path, metavar="FOLDER", help="where everything is written")
    add("--sft", required=True, metavar="RUN", help="run directory of the policy at the start")
    add("--prompts", required=True, metavar="FILE", help="JSON Lines with prompt, messages, or instruction and input")
    add("--gold", default=GOLD, metavar="SPEC", help="the true reward (default: experiments/rewards/positive.py)")
    add("--comparisons", type=int, nargs="+", default=[250, 1000, 4000], metavar="N", help="of each proxy")
    add("--drawn", type=int, default=4, help="answers to a prompt, of which two make a comparison (default: 4)")
    add("--iterations", type=int, default=100, help="of PPO (default: 100)")
    add("--every", type=int, default=10, help="iterations from one validation to the next (default: 10)")
    add("--held_out", type=int, default=128, help=f"held-out prompts, a multiple of {ROWS} (default: 128)")
    add("--answers", type=int, default=64, help="to each of these, for the best of n (default: 64)")
    add("--tokens", type=int, default=24, help="of an answer (default: 24)")
    add("--room", type=int, default=64, help="tokens of prompt and answer (default: 64)")
    add("--reward_lr", type=float, default=3e-4, help="peak learning rate of the proxies (default: 3e-4)")
    add("--ppo_lr", type=float, default=1e-4, help="peak learning rate of PPO (default: 1e-4)")
    add("--seed", type=int, default=0)
    values = vars(parser.parse_args(arguments))
    folder = values.pop("folder")
    setup = Setup(**values | {"comparisons": tuple(sorted(values["comparisons"]))})
    if setup.held_out % ROWS or setup.held_out < ROWS:
        parser.error(f"--held_out={setup.held_out} must be a multiple of {ROWS}, the answers of an iteration")
    if setup.drawn < 2 or setup.comparisons[0] < 1:
        parser.error("--drawn must be at least 2, and each of --comparisons at least 1")
    if setup.answers < 2 or setup.tokens >= setup.room:
        parser.error("--answers must be at least 2, and --tokens less than --room")
    return folder, setup


def check_same(folder: Path, setup: Setup) -> None:
    """Notes the setup; ends the program if the folder was made with another."""
    path, values = folder / "setup.json", json.loads(json.dumps(dataclasses.asdict(setup)))
    if not path.exists():
        durable.replace_text(path, json.dumps(values, indent=2))
    before = json.loads(path.read_text())
    for name, value in values.items():
        if before.get(name) != value:
            sys.exit(
                f"{folder} was made with --{name}={before.get(name)!r}, and now it is {value!r}; give another FOLDER"
            )


def split_prompts(folder: Path, setup: Setup) -> None:
    """Writes held-out and training prompts that leave room for an answer."""
    if (folder / "train.jsonl").exists():
        return
    answers, found = model(setup, 1), []
    for prompt in chat_prompts.read(setup.prompts, Skipped(refuses=False)):
        try:
            fits = len(answers.framed(prompt).ids) <= setup.room - setup.tokens
        except ValueError:
            continue
        if fits:
            found.append(dict(prompt.record) | {"messages": list(prompt.messages)})
    random.Random(setup.seed).shuffle(found)
    if len(found) <= setup.held_out:
        sys.exit(f"{setup.prompts} has {len(found)} prompts that fit; more than --held_out={setup.held_out} are needed")
    for name, part in (("held_out", found[: setup.held_out]), ("train", found[setup.held_out :])):
        durable.replace_text(folder / f"{name}.jsonl", "".join(json.dumps(record) + "\n" for record in part))


def compare(folder: Path, setup: Setup) -> None:
    """Writes comparisons by gold reward; goes over the prompts again, with other answers, until there are enough."""
    path, wanted = epath.Path(folder / "comparisons.jsonl"), setup.comparisons[-1]
    there = read_lines(path)
    if len(there) >= wanted:
        return
    answers, gold, asked = model(setup, setup.drawn), rewards.load(setup.gold), prompts_of(folder / "train.jsonl")
    lines, count, begun = JsonLines(path, lambda record: False), len(there), time.perf_counter()
    vain = 0  # prompts since the last comparison
    numbers = itertools.count(there[-1]["number"] + 1 if there else 0)
    while count < wanted:
        chosen = list(itertools.islice(numbers, max(1, 4 * BATCH // setup.drawn)))
        some = [asked[number % len(asked)] for number in chosen]
        for number, prompt, texts in zip(chosen, some, drawn(answers, some, chosen), strict=True):
            pair = first_pair(texts, gold([prompt] * len(texts), texts))
            vain = vain + 1 if pair is None else 0
            if pair is not None and count < wanted:
                lines.write({"messages": list(prompt.messages), **pair, "number": number})
                count += 1
        if vain >= len(asked):
            sys.exit(f"no two answers to any of {len(asked)} prompts differ by --gold={setup.gold}; give another")
        print(f"  {count} of {wanted} comparisons, {time.perf_counter() - begun:.0f} s", flush=True)
    lines.close()


def first_pair(texts: Sequence[str], scores: np.ndarray) -> dict[str, str] | None:
    """The first two answers that have text and differ in reward, the better one chosen."""
    for i, j in itertools.combinations(range(len(texts)), 2):
        if scores[i] != scores[j] and texts[i].strip() and texts[j].strip():
            better, worse = (i, j) if scores[i] > scores[j] else (j, i)
            return {"chosen": texts[better], "rejected": texts[worse]}
    return None


def train_proxies(folder: Path, setup: Setup) -> None:
    """Trains a reward model on the first comparisons, for each amount of them."""
    records = read_lines(epath.Path(folder / "comparisons.jsonl"))
    length = setup.room + 16  # of a comparison, whose text may have other tokens than were drawn
    for count in setup.comparisons:
        if (folder / f"proxy_{count}" / "reward.json").exists():
            continue
        data = folder / f"comparisons_{count}.jsonl"
        durable.replace_text(data, "".join(json.dumps(record) + "\n" for record in records[:count]))
        knobs = {
            "data.train": data,
            "data.bad_records": "skip",
            "train.sequence_length": length,
            "train.batch_tokens": 32 * length,
            "optimizer.peak_lr": setup.reward_lr,
        }
        align("reward", folder / f"proxy_{count}", setup, knobs)


def optimise(folder: Path, setup: Setup) -> None:
    """Trains a policy by each proxy."""
    for count in setup.comparisons:
        evals = read_lines(epath.Path(folder / f"ppo_{count}" / "evals.jsonl"))
        if evals and evals[-1]["step"] >= setup.iterations:
            continue
        knobs = {
            "data.train": folder / "train.jsonl",
            "data.validation": folder / "held_out.jsonl",
            "rl.reward": folder / f"proxy_{count}",
            "rl.gold": setup.gold,
            "rl.kl": 0.0,
            "rl.response_tokens": setup.tokens,
            "align.epochs": 0.0,
            "train.tokens": setup.iterations * ROWS * setup.room,
            "train.sequence_length": setup.room,
            "train.batch_tokens": ROWS * setup.room,
            "optimizer.peak_lr": setup.ppo_lr,
            "eval.every_steps": setup.every,
            "eval.tokens": setup.held_out * setup.room,
        }
        align("ppo", folder / f"ppo_{count}", setup, knobs)


def align(verb: str, run: Path, setup: Setup, knobs: dict[str, object]) -> None:
    """Runs or resumes ``scaling align VERB``; ends the program with its code if it fails."""
    every = {"workdir": run.resolve(), "start": setup.sft, "seed": setup.seed} | knobs
    command = [sys.executable, "-m", "scaling", "align", verb, f"--config={HERE / verb}.py"]
    done = subprocess.run([*command, *(f"--config.{name}={value}" for name, value in every.items())], check=False)
    if done.returncode:
        sys.exit(done.returncode)


def answer_held_out(folder: Path, setup: Setup) -> None:
    """Writes many answers to each held-out prompt, a line a prompt."""
    path, asked = epath.Path(folder / "answers.jsonl"), prompts_of(folder / "held_out.jsonl")
    there = len(read_lines(path))
    if there == len(asked):
        return
    answers, lines = model(setup, setup.answers), JsonLines(path, lambda record: False)
    for number in range(there, len(asked)):
        # numbers that no comparison has, so that no answer is drawn by the same seed
        (texts,) = drawn(answers, [asked[number]], [2**30 + number])
        lines.write({"number": number, "messages": list(asked[number].messages), "answers": texts})
    lines.close()


def score_answers(folder: Path, setup: Setup) -> None:
    """Writes the rewards of these answers by gold and by each proxy, float32 [prompts, answers]."""
    asked, texts = prompts_of(folder / "held_out.jsonl"), read_lines(epath.Path(folder / "answers.jsonl"))
    for name, spec in [("gold", setup.gold), *((str(n), str(folder / f"proxy_{n}")) for n in setup.comparisons)]:
        path = folder / f"scores_{name}.npy"
        if path.exists():
            continue
        reward = rewards.load(spec, batch_size=BATCH)
        found = [reward([p] * setup.answers, line["answers"]) for p, line in zip(asked, texts, strict=True)]
        part = path.with_suffix(".part")
        with part.open("wb") as file:
            np.save(file, np.stack(found))
        part.replace(path)


@dataclasses.dataclass(frozen=True)
class Curve:
    """Rewards of one way to optimise against one proxy.

    Attributes:
        method: ``best_of_n`` or ``rl``.
        comparisons: of the proxy.
        distance: root of the divergence [n].
        gold: reward [n], as the module's docstring says.
        proxy: reward [n].
        fit: of gold.
    """

    method: str
    comparisons: int
    distance: np.ndarray
    gold: np.ndarray
    proxy: np.ndarray
    fit: Fit


def summarise(folder: Path, setup: Setup) -> None:
    """Fits, draws and writes everything that was found."""
    gold, found, facts = np.load(folder / "scores_gold.npy").astype(float), list[Curve](), dict[int, dict[str, float]]()
    for count in setup.comparisons:
        proxy = np.load(folder / f"scores_{count}.npy").astype(float)
        found += [best_of(count, gold, proxy), by_rl(count, folder / f"ppo_{count}", gold, proxy)]
        last = read_lines(epath.Path(folder / f"proxy_{count}" / "evals.jsonl"))[-1]
        facts[count] = {
            "accuracy": last["accuracy"],
            "correlation": float(np.corrcoef(gold.ravel(), proxy.ravel())[0, 1]),
        }
    text = table(found, facts)
    durable.replace_text(folder / "table.md", text)
    durable.replace_text(folder / "overoptimisation.json", json.dumps(as_json(found, facts), indent=2))
    draw(found).save(epath.Path(folder))
    print(text)


def best_of(count: int, gold: np.ndarray, proxy: np.ndarray) -> Curve:
    """Best of n by a proxy, of rewards [prompts, answers]."""
    sizes = [n for n in SIZES if n <= gold.shape[1]]
    distance = np.sqrt([best_of_n_kl(n) for n in sizes])
    true, learned = ((best_of_n(proxy, each, sizes) - each.mean()) / each.std() for each in (gold, proxy))
    fit = fit_over_prompts("best_of_n", distance, true)
    return Curve("best_of_n", count, distance, true.mean(0), learned.mean(0), fit)


def by_rl(count: int, run: Path, gold: np.ndarray, proxy: np.ndarray) -> Curve:
    """The validations of a run of PPO; its start is the mean of the SFT run's answers to the same prompts."""
    lines = read_lines(epath.Path(run / "evals.jsonl"))
    distance = np.sqrt([max(0.0, line["objective/kl"]) for line in lines])
    true = (np.array([line["objective/gold"] for line in lines]) - gold.mean()) / gold.std()
    learned = (np.array([line["objective/scores"] for line in lines]) - proxy.mean()) / proxy.std()
    distance, true, learned = (np.concatenate([[0.0], each]) for each in (distance, true, learned))
    return Curve("rl", count, distance, true, learned, fit_over_points("rl", distance, true))


def table(found: Sequence[Curve], facts: dict[int, dict[str, float]]) -> str:
    """A row a curve, as Markdown."""
    rows = [
        "| proxy's comparisons | accuracy | correlation with gold | by | alpha | beta | highest gold | at √KL "
        "| gold at the end | proxy at the end |",
        "|" + "---|" * 10,
    ]
    for curve in found:
        fit, best, about = curve.fit, int(np.argmax(curve.gold)), facts[curve.comparisons]
        alpha, beta = interval(fit.alpha, fit.alpha_interval), interval(fit.beta, fit.beta_interval)
        numbers = (curve.gold[best], curve.distance[best], curve.gold[-1], curve.proxy[-1])
        cells = [curve.comparisons, f"{about['accuracy']:.3f}", f"{about['correlation']:.3f}", NAMES[curve.method]]
        rows.append("| " + " | ".join(map(str, [*cells, alpha, beta, *(f"{x:.2f}" for x in numbers)])) + " |")
    return "\n".join(rows) + "\n"


NAMES = {"best_of_n": "best of n", "rl": "PPO"}


def interval(value: float, ends: tuple[float, float] | None) -> str:
    """A number with its 95 % interval."""
    assert ends is not None
    return f"{value:.3f} [{ends[0]:.3f}, {ends[1]:.3f}]"


def as_json(found: Sequence[Curve], facts: dict[int, dict[str, float]]) -> dict[str, object]:
    """Everything that the figure shows."""
    curves = [
        {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in vars(curve).items()}
        | {"fit": dataclasses.asdict(curve.fit)}
        for curve in found
    ]
    return {"curves": curves, "proxies": facts}


def draw(found: Sequence[Curve]) -> Drawing:
    """Gold (solid) and proxy (dashed) reward against the root of the divergence."""
    colours = Colours([curve.comparisons for curve in found])
    with canvas(columns=2, width=11.5, height=5.0) as (figure, panels):
        for axes, method in zip(panels, ("rl", "best_of_n"), strict=True):
            for curve in (each for each in found if each.method == method):
                order, colour = np.argsort(curve.distance), colours(curve.comparisons)
                label = f"{curve.comparisons:,} comparisons"
                axes.plot(curve.distance[order], curve.gold[order], "o-", color=colour, ms=3.5, label=label)
                axes.plot(curve.distance[order], curve.proxy[order], ls="--", color=colour, lw=1.3)
                smooth = np.linspace(0, curve.distance.max(), 200)
                axes.plot(smooth, curve.fit(smooth), ls=":", color=colour, lw=1.3)
            axes.set(title=NAMES[method], xlabel=KL_LABEL, ylabel="reward over the start's, in its standard deviations")
            axes.legend(loc="best", title="gold —, proxy - -, fit of gold ···")
    caption = "Gold and proxy reward against the root of the divergence from the supervised model."
    return Drawing("overoptimisation", caption, figure)


def model(setup: Setup, samples: int) -> Answers:
    """The SFT run, which gives so many answers to a prompt."""
    served = load_served(setup.sft)
    sampling = Sampling(tokens=setup.tokens, num_samples=samples, seed=setup.seed, temperature=1.0)
    generator = Generator(served.network, served.params, served.words, served.mesh)
    return Answers(generator, served.chat(), sampling, BATCH)


def drawn(answers: Answers, asked: Sequence[Prompt], numbers: Sequence[int]) -> Iterator[list[str]]:
    """Texts of the answers to each prompt."""
    for completions in answers(asked, numbers):
        yield [completion.text for completion in completions]


def prompts_of(path: Path) -> list[Prompt]:
    """The prompts of a file that ``split_prompts`` wrote."""
    return list(chat_prompts.read(str(path), Skipped(refuses=True)))


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
