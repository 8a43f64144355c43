"""The training of ``scaling distill``: a smaller model imitates another one (DistilBERT: arXiv 1910.01108)."""

from typing import Any

from scaling.config import schema as cfg
from scaling.config.refusal import refused
from scaling.data.tokenizer import Tokenizer
from scaling.objectives.distillation import distillation
from scaling.objectives.pretraining import must_fit
from scaling.runs import tokenizer as run_tokenizer
from scaling.runs.config_json import read_config_json
from scaling.runs.start import Start
from scaling.train.recipe import Recipe
from scaling.train.run import Data, Run

_TEACHER = "distill.teacher"


def recipe(config: cfg.Config, workdir: str) -> Recipe:
    """The training of a config.

    Args:
        config: not necessarily resolved; without ``distill.teacher`` its ``start`` is the teacher.
        workdir: run directory.

    Raises:
        FileNotFoundError, ValueError: no teacher, or as ``Start.of``.
    """
    if not config.distill.teacher and not config.start:
        raise refused(_TEACHER, "", "must name the run that is imitated, or config.start must")
    if config.distill.layers and not config.start:
        raise refused("distill.layers", config.distill.layers, "must be 0 without config.start")
    teacher = Start.of(config, workdir, _TEACHER if config.distill.teacher else "start")

    def data(config: cfg.Config, words: Tokenizer) -> Data:
        _check(config, teacher, words)
        return Data.of(config, words)

    def frozen(run: Run) -> Any:
        if run.is_first and teacher.knob == _TEACHER:
            teacher.note(run.directory)
        return teacher.params(teacher.model, run.mesh, run.config.seed)

    return Recipe(
        "distill",
        data,
        lambda config: distillation(config, teacher.model),
        encoder_suffix="",
        frozen=frozen,
    )


def _check(config: cfg.Config, teacher: Start, words: Tokenizer) -> None:
    """Refuses a teacher that a student cannot imitate (ValueError)."""
    must_fit(config)
    name, model, theirs = teacher.knob, config.model, teacher.model
    known = run_tokenizer.load(teacher.run, read_config_json(teacher.run))
    if known.fingerprint != words.fingerprint or theirs.vocab_size != model.vocab_size:
        right = f"has the tokenizer {known.name!r} of {theirs.vocab_size} tokens, and must have that of the student, "
        raise refused(name, teacher.run, f"{right}{words.name!r} of {model.vocab_size}")
    if theirs.causal != model.causal or bool(theirs.encoder_layers) != bool(model.encoder_layers):
        raise refused(name, teacher.run, "must be an encoder, a decoder, or both, as the student is")
    if theirs.prefix_lm:
        raise refused(name, teacher.run, "has config.model.prefix_lm=True, and would read prompts as a causal model")
    if theirs.outputs or theirs.discriminates:
        raise refused(name, teacher.run, "predicts no tokens")
    lengths = {"train.sequence_length": config.train.sequence_length}
    if model.encoder_layers:
        lengths["data.source_length"] = config.data.source_length or config.train.sequence_length
    for knob, length in lengths.items():
        if length > theirs.context_length:
            right = f"must be at most {theirs.context_length}, the tokens that {teacher.run} reads"
            raise refused(knob, length, right)
    if config.data.objective == "tlm" and theirs.token_types == 1:
        raise refused(name, teacher.run, "must tell 2 types of tokens apart, or none, with config.data.objective='tlm'")
    if config.distill.cosine and theirs.d_output != model.d_output:
        right = f"must be 0, since the teacher's final states have {theirs.d_output} features, here {model.d_output}"
        raise refused("distill.cosine", config.distill.cosine, right)
    if config.data.objective in ("mlm_nsp", "mlm_sop", "replaced_token", "permutation", "translations"):
        raise refused("data.objective", config.data.objective, "must be 'mlm' in a distillation of an encoder")
    if config.mesh.stage > 1:
        raise refused("mesh.stage", config.mesh.stage, "must be 1 in a distillation")
