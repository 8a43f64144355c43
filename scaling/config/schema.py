"""Every knob of the framework, declared once: type, default, unit, meaning.

The dataclasses below and in ``model`` are the only declaration. From them are made

* ``default_config()``: a locked ``ml_collections.ConfigDict`` that experiment files edit
  (a mistyped key is an error that names the nearest valid one);
* ``freeze(config)``: frozen, hashable, typed dataclasses that the rest of the code reads;
* ``scaling.config.describe.to_markdown()``: the reference that ``scaling config --describe`` prints, and
  ``docs/config.md``.

``scaling.config.resolve`` fills in derived values and refuses impossible ones.
"""

import dataclasses
import json
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from ml_collections import ConfigDict

from scaling.config.align import Align, Chat, Distill, Dpo, Reinforcement
from scaling.config.align import Lora as Lora
from scaling.config.knob import knob
from scaling.config.model import Compute, Model, Network
from scaling.config.model import Disentangled as Disentangled
from scaling.config.model import Experts as Experts
from scaling.config.model import Rotary as Rotary
from scaling.config.model import Sight as Sight
from scaling.config.refusal import shown

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Data:
    train: str = knob(
        "books",
        "path",
        "text or token files (a glob, local or gs://), or a built corpus; 'books' = the embedded corpus",
    )
    validation: str = knob("", "path", "held-out files; empty = hold out validation_fraction of the documents")
    validation_fraction: float = knob(0.01, "fraction", "documents of train that are held out when validation is empty")
    mixture: tuple[tuple[str, float], ...] = knob(
        (), "(path, weight)", "several training sources sampled by weight; then data.train must be ''"
    )
    tokenizer: str = knob("gpt2", "", "gpt2, bytes, books (embedded sentencepiece) or a tokenizer file")
    objective: str = knob(
        "next_token",
        "",
        "what pre-training predicts: next_token; hidden tokens (mlm), and whether two texts follow each other "
        "(mlm_nsp, BERT) or are swapped (mlm_sop, ALBERT), or in two languages (tlm, XLM), or which tokens a generator "
        "has replaced (replaced_token, ELECTRA); behind an encoder hidden "
        "spans (span_corruption, T5), the text without noise (denoising, BART) or its rest (prefix); the last tokens "
        "of a random order (permutation, XLNet); pairs: their targets; translations: which of a batch is a text's "
        "(LaBSE)",
    )
    source_length: int = knob(0, "tokens", "that the encoder reads in a row; 0 = train.sequence_length")
    source_key: str = knob(
        "source", "", "field of the source in the .jsonl records of objectives pairs, tlm and translations"
    )
    pack: bool = knob(False, "", "objective pairs: several pairs share a row, each sees itself alone")
    target_key: str = knob("target", "", "field of the target, or of its translation, in the same records")
    text_key: str = knob("text", "", "field that holds the text in .jsonl and .parquet records")
    control_field: str = knob(
        "", "", "field of .jsonl and .parquet records with a control code, as in CTRL: texts begin with it; '' = none"
    )
    bad_records: str = knob(
        "error", "", "at a record that cannot be read: 'error' stops, 'skip' uses another sequence and counts it"
    )
    cache_dir: str = knob("", "path", "folder of tokenized shards; empty = $SCALING_CACHE or ~/.cache/scaling")
    workers: int = knob(2, "threads", "threads that read and assemble batches")
    prefetch: int = knob(4, "batches", "batches kept ready ahead of the device")


@dataclasses.dataclass(frozen=True)
class Noise:
    rate: float = knob(
        0.15,
        "fraction",
        "of the tokens of a text are hidden or predicted: mlm, tlm, replaced_token, span_corruption, permutation",
    )
    random: float = knob(0.1, "fraction", "of the hidden tokens become any token, and not the mask")
    kept: float = knob(0.1, "fraction", "of the hidden tokens stay as they are")
    span: float = knob(3.0, "tokens", "mean length of a hidden span: span_corruption, and infilling of denoising")
    permuted: float = knob(1.0, "fraction", "denoising: of the sentences of a document change places")
    rotated: float = knob(0.0, "probability", "denoising: that a document begins with any of its tokens")
    deleted: float = knob(0.0, "fraction", "denoising: of the tokens are left out")
    masked: float = knob(0.0, "fraction", "denoising: of the tokens become the mask, each one for itself")
    infilling: float = knob(0.3, "fraction", "denoising: of the tokens are in spans that become one mask each")


@dataclasses.dataclass(frozen=True)
class Train:
    tokens: int = knob(300_000_000_000, "tokens", "length of the run")
    sequence_length: int = knob(0, "tokens", "length of a training sequence; 0 = model.context_length")
    batch_tokens: int = knob(524_288, "tokens", "tokens in one optimizer step at full batch size")
    microbatch_sequences: int = knob(
        0,
        "sequences",
        "sequences in one forward and backward pass over all devices; 0 = the batch (with a ramp, the first)",
    )
    pipeline_microbatches: int = knob(
        0,
        "",
        "parts of a microbatch that pass through the stages of the pipeline one after another; 0 = four for each "
        "stage, or fewer if those do not divide the microbatch (config.mesh.stage=1: no pipeline)",
    )
    ramp_start_tokens: int = knob(32_768, "tokens", "batch size at the start of the ramp")
    ramp_tokens: int = knob(0, "tokens", "the batch grows linearly over this many tokens; 0 = no ramp")
    z_loss: float = knob(0.0, "", "coefficient of the penalty on the squared log of the softmax's denominator")
    discriminator_weight: float = knob(50.0, "", "coefficient of the discriminator's loss beside the generator's")
    margin: float = knob(0.3, "", "translations: taken from the cosine of a text with its own translation (LaBSE)")
    cosine_scale: float = knob(20.0, "", "translations: multiplies cosines before the softmax")
    label_smoothing: float = knob(
        0.0, "probability", "that pre-training spreads over all tokens alike, and takes from the target's"
    )


@dataclasses.dataclass(frozen=True)
class Optimizer:
    name: str = knob("adamw", "", "adamw, or another optimizer of Optax by its name there: adafactor, lion, muon, ...")
    arguments: tuple[tuple[str, Any], ...] = knob(
        (), "(name, value)", "arguments of an optimizer other than adamw, as Optax names them: (('b1', 0.95),)"
    )
    peak_lr: float = knob(6e-4, "", "learning rate after warm-up")
    beta1: float = knob(0.9, "", "decay of adamw's first moment")
    beta2: float = knob(0.95, "", "decay of adamw's second moment")
    epsilon: float = knob(1e-8, "", "added to the square root of adamw's second moment")
    weight_decay: float = knob(0.1, "", "decoupled weight decay, multiplied by the learning rate")
    decay_biases_and_norms: bool = knob(False, "", "apply weight decay to biases and gains of norms too")
    clip_norm: float = knob(1.0, "", "the global norm of the gradient is clipped to this; 0 = no clipping")
    trained: str = knob(
        "all", "", "parameters that change: 'all', or 'head' for the head of config.model.outputs alone"
    )
    state_dtype: str = knob("float32", "", "moments between steps: float32 or bfloat16 (stochastic rounding)")
    schedule: str = knob("cosine", "", "cosine, wsd (warmup-stable-decay), linear, inverse_sqrt or constant")
    warmup_tokens: int = knob(375_000_000, "tokens", "length of the linear warm-up from 0")
    decay_tokens: int = knob(
        0,
        "tokens",
        "cosine, linear: tokens at which the decay ends (0 = train.tokens); wsd: length of the decay (0 = a fifth of "
        "train.tokens); inverse_sqrt: tokens at which it begins (0 = warmup_tokens)",
    )
    final_fraction: float = knob(0.1, "fraction", "learning rate at the end of the decay, relative to the peak")


@dataclasses.dataclass(frozen=True)
class Mesh:
    stage: int = knob(
        1, "stages", "stages of the pipeline, which share the layers; slices are divided among stages first"
    )
    data: int = knob(-1, "devices", "replicas inside a slice; -1 = all devices that the other axes do not use")
    fsdp: int = knob(1, "devices", "shards of parameters, gradients and optimizer state, and of the batch")
    expert: int = knob(1, "devices", "shards of the experts; outside of experts it acts like fsdp")
    context: int = knob(1, "devices", "shards of the sequence (ring attention), and of the state like fsdp")
    tensor: int = knob(1, "devices", "shards of heads, MLP and vocabulary, and of the sequence between those")
    shard_optimizer: bool = knob(False, "", "shard gradients and optimizer state over the data axis too (ZeRO-2)")
    slices: int = knob(
        1, "slices", "TPU slices joined by the data-centre network; those that stages do not use multiply data"
    )
    cpu_devices: int = knob(0, "devices", "run on this many virtual CPU devices; 0 = the devices of the machine")

    @property
    def replicas(self) -> int:
        """Size of the data axis over all slices; slices that stages do not use multiply it. ``data=-1`` counts as 1."""
        return max(1, self.data) * max(1, self.slices // self.stage)

    @property
    def factors(self) -> dict[str, int]:
        """The axes whose product is the number of devices; slices are divided among stages first."""
        outer = {"slices": self.slices} if self.stage == 1 else {"stage": self.stage}
        if 1 < self.stage < self.slices:
            outer["slices/stage"] = self.slices // self.stage
        rare = {axis: size for axis in ("expert", "context") if (size := getattr(self, axis)) > 1}
        return outer | {"data": self.data, "fsdp": self.fsdp} | rare | {"tensor": self.tensor}

    @property
    def shards(self) -> int:
        """Number of shards of a batch's rows outside of the pipeline; ``data=-1`` counts as 1."""
        return self.stage * self.stage_shards

    @property
    def stage_shards(self) -> int:
        """Number of shards of the rows that a stage works on; ``data=-1`` counts as 1."""
        return self.replicas * self.fsdp * self.expert

    @property
    def state_shards(self) -> int:
        """Number of shards of the parameters that are gathered for use, without those over ``tensor``."""
        return self.fsdp * self.expert * self.context

    @property
    def devices(self) -> int:
        """Number of devices, the product of all axes; ``data=-1`` counts as 1."""
        return self.shards * self.context * self.tensor


@dataclasses.dataclass(frozen=True)
class Distributed:
    coordinator_address: str = knob("", "host:port", "process 0; empty = detect TPU pod, Slurm, Kubernetes or MPI")
    num_processes: int = knob(0, "processes", "number of processes when coordinator_address is given")
    process_id: int = knob(-1, "", "number of this process, from 0, when coordinator_address is given")
    heartbeat_seconds: int = knob(60, "seconds", "a process silent for so long counts as dead, and the others end")
    join_seconds: int = knob(300, "seconds", "a process ends if it does not find the others within this time")


@dataclasses.dataclass(frozen=True)
class Eval:
    every_steps: int = knob(1000, "steps", "interval of validations; 0 = only at the end")
    tokens: int = knob(1_048_576, "tokens", "size of the fixed validation set, cut to what the held-out data holds")
    batch_sequences: int = knob(0, "sequences", "sequences in one validation batch; 0 = the training microbatch")
    tasks: str = knob("", "", "tasks evaluated during training, as in scaling evaluate --tasks; empty = none")
    tasks_every_steps: int = knob(1000, "steps", "interval of the tasks; 0 = only at the end")
    tasks_shots: str = knob("0,1,few", "", "numbers of demonstrations; few = the number that each task declares")
    tasks_limit: int = knob(200, "items", "items of each task, always the same; 0 = all")
    tasks_data: str = knob("", "path", "directory of the tasks' local files; generated tasks need none")


@dataclasses.dataclass(frozen=True)
class Log:
    every_steps: int = knob(10, "steps", "interval of lines in metrics.jsonl")
    tensorboard: bool = knob(True, "", "write TensorBoard events")
    wandb_project: str = knob("", "", "Weights & Biases project; empty = off")
    batch_hash: bool = knob(False, "", "write a hash of the step's batch to each line of metrics.jsonl")


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    every_steps: int = knob(1000, "steps", "interval; one more is saved at the end or at a signal; 0 = only that one")
    keep_last: int = knob(3, "checkpoints", "number of newest checkpoints that are kept")
    keep_every_steps: int = knob(0, "steps", "checkpoints at multiples of this are kept for ever; 0 = none")
    choose: str = knob(
        "",
        "",
        "checkpoint that readers of the run take: '' = the newest; 'loss' or 'reward' = the best by that figure of its "
        "validation, which is kept, and each validation then saves one; 'reward' is for align sft, with rl.reward",
    )
    asynchronous: bool = knob(True, "", "write in the background while training goes on")


@dataclasses.dataclass(frozen=True)
class Guard:
    spike_factor: float = knob(
        0.0, "", "a step is skipped if its loss or gradient norm is more than this many times the running mean; 0 = off"
    )
    rollback_after: int = knob(
        3,
        "steps",
        "after so many bad steps in a row the run goes back to the last good checkpoint and leaves their data out; 0 = "
        "the first bad step ends the run",
    )
    store_seconds: int = knob(
        300,
        "seconds",
        "of a run in an object store (gs://, s3://): so long may a request fail before the run ends with exit code 74",
    )
    hang_seconds: int = knob(
        600,
        "seconds",
        "a step that takes longer ends the process; for anything else the limit is ten times this; 0 = no limit",
    )
    recompute_every_steps: int = knob(
        0,
        "steps",
        "interval at which a step is computed twice and the results are compared (needs memory for two states); "
        "0 = never",
    )


@dataclasses.dataclass(frozen=True)
class Sample:
    prompts: tuple[str, ...] = knob((), "", "texts that are continued at the end of training; empty = none")
    tokens: int = knob(100, "tokens", "length of each continuation")
    temperature: float = knob(0.8, "", "softmax temperature; 0 = greedy")
    top_k: int = knob(40, "tokens", "sample from this many most likely tokens; 0 = from all")


@dataclasses.dataclass(frozen=True)
class Config:
    workdir: str = knob(
        "", "path", "run directory; empty = runs/<name of the config file>, or the folder of a run's config.json"
    )
    seed: int = knob(0, "", "seed of initial weights, data order and dropout")
    start: str = knob(
        "",
        "path",
        "run directory with whose weights training begins, the newest or checkpoint.choose's; empty = random",
    )
    model: Model = Model()
    compute: Compute = Compute()
    data: Data = Data()
    noise: Noise = Noise()
    train: Train = Train()
    optimizer: Optimizer = Optimizer()
    mesh: Mesh = Mesh()
    distributed: Distributed = Distributed()
    eval: Eval = Eval()
    log: Log = Log()
    checkpoint: Checkpoint = Checkpoint()
    guard: Guard = Guard()
    sample: Sample = Sample()
    chat: Chat = Chat()
    align: Align = Align()
    rl: Reinforcement = Reinforcement()
    dpo: Dpo = Dpo()
    distill: Distill = Distill()
    lora: Lora = Lora()

    @property
    def predicted(self) -> float:
        """The share of the tokens whose logits pre-training computes."""
        if self.data.objective == "translations":
            return 0.0
        masked = ("mlm", "mlm_nsp", "mlm_sop", "tlm", "replaced_token", "permutation")
        return self.noise.rate if self.data.objective in masked else 1.0

    @property
    def network(self) -> Network:
        """The model and how it is computed."""
        return Network(self.model, self.compute)


# Old names of knobs that have moved. A config.json with an old name is read; on the command line it is refused, and the
# message gives the present name.
MOVED = {
    "model.compute_dtype": "compute.dtype",
    "model.quantization": "compute.quantization",
    "model.remat": "compute.remat",
    "model.scan_unroll": "compute.scan_unroll",
    "model.attention_block": "compute.attention_block",
    "train.loss_chunk": "compute.loss_chunk",
}


def default_config() -> ConfigDict:
    """Returns all knobs at their defaults, as a locked ConfigDict for an experiment file to edit."""
    return ConfigDict(to_dict(Config())).lock()


def to_dict(section: Any) -> dict[str, Any]:
    """A frozen config, or a section of one, as nested plain dicts, which is what ``config.json`` contains."""
    fields = {f.name: getattr(section, f.name) for f in dataclasses.fields(section)}
    return {k: to_dict(v) if dataclasses.is_dataclass(v) else v for k, v in fields.items()}


def freeze(config: ConfigDict | Mapping[str, Any]) -> Config:
    """Turns an edited ConfigDict (or the dict of a ``config.json``) into typed, hashable dataclasses.

    Knobs that have moved since a ``config.json`` was written (``MOVED``) are put at their present place.

    Raises:
        ValueError: a key that is no knob, or a value of the wrong type.
    """
    values = config.to_dict() if isinstance(config, ConfigDict) else _at_present_places(config)
    return built(Config, values, "config")


def model_of(values: Mapping[str, Any]) -> Model:
    """The section ``model`` from nested plain dicts.

    Raises:
        ValueError: a key that is no knob, or a value of the wrong type.
    """
    return built(Model, values, "config.model")


def _at_present_places(values: Mapping[str, Any]) -> dict[str, Any]:
    """A config that any version wrote, with each knob of ``MOVED`` at its present place."""
    values = {name: dict(value) if isinstance(value, Mapping) else value for name, value in values.items()}
    for before, now in MOVED.items():
        (old_section, old_name), (section, name) = before.split("."), now.split(".")
        old = values.get(old_section)
        if isinstance(old, dict) and old_name in old:
            values.setdefault(section, {}).setdefault(name, old.pop(old_name))
    return values


def built(cls: type[T], values: Mapping[str, Any], where: str) -> T:
    """The frozen dataclass of a section of knobs, from nested plain dicts; knobs that are not there keep defaults.

    Raises:
        ValueError: a key that is no knob, or a value of the wrong type; ``where`` begins its dotted name.
    """
    import difflib

    known = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for key in values:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0)
            raise ValueError(f"{where}.{key} is not a knob; did you mean {where}.{near[0]}?")
    found = {}
    for name, field in known.items():
        if name not in values:
            continue
        default = field.default
        value = values[name]
        if dataclasses.is_dataclass(default):
            if not isinstance(value, Mapping):
                raise ValueError(f"{where}.{name} is a section of knobs, not a value; got {shown(value)}")
            found[name] = built(type(default), value, f"{where}.{name}")
        else:
            found[name] = _convert(value, default, f"{where}.{name}")
    return cls(**found)


def _convert(value: Any, default: Any, where: str) -> Any:
    """Checks the type of a value against its default. Integers become floats, and whole floats become integers."""
    if isinstance(default, tuple) and isinstance(value, list | tuple):
        return tuple(tuple(v) if isinstance(v, list | tuple) else v for v in value)
    if isinstance(default, bool) or isinstance(value, bool):
        ok = isinstance(default, bool) and isinstance(value, bool)
    elif isinstance(default, float):
        ok = isinstance(value, float) or (isinstance(value, int) and abs(value) < 10**300)
        value = float(value) if ok else value
    elif isinstance(default, int):
        ok = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
        value = int(value) if ok else value
    else:
        ok = isinstance(value, type(default))
    if not ok:
        raise ValueError(f"{where} must be a {type(default).__name__}, got {shown(value)}")
    return value


def knobs(section: Any = None, prefix: str = "config") -> Iterator[tuple[str, Any, str, str]]:
    """Yields (dotted name, value, unit, help) of every knob of a frozen config (defaults if None)."""
    section = Config() if section is None else section
    for field in dataclasses.fields(section):
        value = getattr(section, field.name)
        name = f"{prefix}.{field.name}"
        if dataclasses.is_dataclass(value):
            yield from knobs(value, name)
        else:
            yield name, value, field.metadata["unit"], field.metadata["help"]


def to_json(config: Config) -> str:
    """The resolved config as indented JSON."""
    return json.dumps(to_dict(config), indent=2)
