"""One run as frozen dataclasses: the border where a ConfigDict ends. Below it everything is checked. No jax.

`trial_from(mapping)` takes the nested plain values of a config (as a person wrote them, or as config.json keeps them)
and gives a Trial or raises ConfigError with the full name of the field.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from experiments import protocols
from experiments.budgets import Lengths, Match, matched
from experiments.data.config import DataConfig
from experiments.data.objectives import OBJECTIVES
from experiments.scores import SCORES
from hybrid.config import ModelConfig
from hybrid.placement import place
from hybrid.validation import (
    Checked,
    ConfigError,
    NaturalFloat,
    NaturalInt,
    PositiveFloat,
    PositiveInt,
    Probability,
    Share,
    build,
    nearest,
    unknown,
    within,
)


@dataclass(frozen=True)
class OptimizerConfig(Checked):
    """AdamW with warm-up. Steps are optimizer steps."""

    learning_rate: PositiveFloat
    weight_decay: NaturalFloat = 0.1
    decay_on: Literal["matrices", "all"] = "matrices"
    """`matrices`: the parameters that their declaration says; `all`: norms, biases and embeddings too."""
    schedule: Literal["constant", "cosine", "cosine_epochs", "wsd"] = "cosine"
    """`cosine_epochs`: a cosine that moves between epochs alone; for a fixed training set (data.examples)."""
    warmup_steps: NaturalInt = 0
    decay_fraction: Annotated[float, within(0, 1.0000001)] = 0.2
    """Share of the steps in which `wsd` decays."""
    final_fraction: Annotated[float, within(0, 1.0000001)] = 0.1
    """The last learning rate as a share of the highest."""
    b1: Probability = 0.9
    b2: Probability = 0.95
    eps: PositiveFloat = 1e-8
    clip_norm: PositiveFloat | None = 1.0
    accumulate: PositiveInt = 1
    """Parts that a batch is cut into, one after another, to save memory; the gradient is that of the whole."""


@dataclass(frozen=True)
class TrainConfig(Checked):
    steps: PositiveInt
    log_every: PositiveInt = 10
    stop_at: Share | None = None
    """Of a synthetic task: an accuracy on the validation rows; the run ends at the first evaluation that reaches it."""
    population: NaturalInt = 0
    """Trials of a group that a worker trains side by side in one program (experiments/population.py); 0: one after
    another on a CPU, as many as fit in memory on an accelerator. No part of a trial's identity."""


@dataclass(frozen=True)
class EvaluateConfig(Checked):
    every: PositiveInt
    """Steps between evaluations on the validation split; the last step is always one."""
    sequences: PositiveInt = 64
    """Sequences of seq_len tokens that an evaluation reads."""


@dataclass(frozen=True)
class CheckpointConfig(Checked):
    every: PositiveInt
    """Steps between checkpoints; the last step is always one."""
    keep: PositiveInt = 2


@dataclass(frozen=True)
class MeshConfig(Checked):
    """Devices along each axis; their product is the number of devices used."""

    data: PositiveInt = 1
    fsdp: PositiveInt = 1
    tensor: PositiveInt = 1
    sequence: PositiveInt = 1
    expert: PositiveInt = 1


@dataclass(frozen=True)
class TrackingConfig(Checked):
    """W&B, a mirror of the run folders."""

    mode: Literal["auto", "offline", "online", "off"] = "auto"
    """`auto`: online when there is a key, else offline."""
    project: str = "hybrid"
    entity: str = ""
    tags: tuple[str, ...] = ()


@dataclass(frozen=True)
class StudyConfig(Checked):
    """What the trials are compared for; no part of any trial's identity."""

    name: str = "study"
    seeds: PositiveInt = 3
    """Seeds of each arm at its chosen rate, those of its tuning runs included."""
    tune_seeds: PositiveInt = 1
    """Seeds on which each setting is tried before one is chosen by their mean; more than 1 where seeds part, as in
    tasks that are learnt all at once or not at all."""
    baseline: str = ""
    """The arm that the others are compared with; empty: the first."""
    tune: tuple[str, ...] = ("optimizer.learning_rate",)
    """Fields that are chosen for each arm on validation, not compared."""
    score: str = "bits_per_byte"
    """What arms are compared by (experiments.scores): bits of next tokens (of DNA per base); of a synthetic task the
    accuracy; or nats per scored token, which is all that masked tokens and spans have."""
    select_on: Literal["validation", "test"] = "validation"
    """The rows by which tuned fields are chosen. `test` is what some papers did: scores chosen so flatter."""

    def check(self) -> None:
        if self.score not in SCORES:
            raise unknown("score", self.score, SCORES, f"{self.score!r} is not allowed")
        if self.tune_seeds > self.seeds:
            raise ConfigError("tune_seeds", f"{self.tune_seeds} is not allowed; at most seeds = {self.seeds}")


@dataclass(frozen=True)
class Trial(Checked):
    """One run. Its identity is what can change its result (`identity`)."""

    model: ModelConfig
    data: DataConfig
    optimizer: OptimizerConfig
    train: TrainConfig
    evaluate: EvaluateConfig
    checkpoint: CheckpointConfig
    mesh: MeshConfig = field(default_factory=MeshConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    study: StudyConfig = field(default_factory=StudyConfig)
    seed: Annotated[int, within(0, 2**32)] = 0
    arm: str = ""
    """The architecture's name in tables; empty: made from its pattern."""
    placement: str = ""
    """The word that placed the attention, where one did."""
    protocol: str = ""
    """The protocol that gave the fields which the config left unset (experiments/protocols/). What it gave stands in
    those fields; the word itself changes nothing."""

    def check(self) -> None:
        if self.optimizer.warmup_steps > self.train.steps:
            allowed = f"at most train.steps = {self.train.steps}"
            raise ConfigError("optimizer.warmup_steps", f"{self.optimizer.warmup_steps} is not allowed; {allowed}")
        if self.train.population > 1 and self.mesh != MeshConfig():
            problem = f"{self.train.population} is not allowed; members stand side by side on one device, not on a mesh"
            raise ConfigError("train.population", problem)
        self._check_batch()
        self._check_traits()
        self._check_task()
        if self.study.score not in self.data.score_names:
            allowed = " or ".join(repr(name) for name in self.data.score_names)
            what = "the task" if self.data.is_task else f"{self.data.objective} on"
            problem = f"{self.study.score!r} is not allowed; {what} {self.data.source!r}"
            raise ConfigError("study.score", f"{problem} is scored by {allowed}")

    def _check_task(self) -> None:
        if self.train.stop_at is not None and not self.data.is_task:
            problem = f"{self.train.stop_at} is not allowed; is an accuracy, which {self.data.source!r} has not"
            raise ConfigError("train.stop_at", problem)
        if self.optimizer.schedule == "cosine_epochs" and not (self.data.examples or self.data.mix):
            problem = "'cosine_epochs' is not allowed; needs a fixed training set (data.examples or data.mix)"
            raise ConfigError("optimizer.schedule", problem)
        if self.data.mix and self.train.population > 1:
            problem = f"{self.train.population} is not allowed; the parts of data.mix have different lengths"
            raise ConfigError("train.population", problem)
        rows = self.train.steps * self.data.batch_size
        if self.data.is_task and rows >= 2**32:
            raise ConfigError("train.steps", f"{self.train.steps} is not allowed; {rows} rows, 2**32 have a number")

    def _check_batch(self) -> None:
        batch, parts, mesh = self.data.batch_size, self.optimizer.accumulate, self.mesh
        shards = mesh.data * mesh.fsdp
        if batch % parts:
            raise ConfigError("optimizer.accumulate", f"{parts} is not allowed; must divide data.batch_size = {batch}")
        if (batch // parts) % shards:
            problem = f"{batch} is not allowed; a part of {batch // parts} must be a multiple of {shards} devices"
            raise ConfigError("data.batch_size", f"{problem} (mesh.data x mesh.fsdp)")
        if mesh.expert != 1 and all(kind.group != "moe" for kind, _ in self.model.parts()):
            raise ConfigError("mesh.expert", f"{mesh.expert} is not allowed; the model has no experts (E)")

    def _check_traits(self) -> None:
        objective = OBJECTIVES[self.data.objective]
        objective.fits(self.data, self.model)
        self._check_stack(self.model, objective.targets(self.data))
        if self.model.encoder_config is not None:
            self._check_stack(self.model.encoder_config, self.data.seq_len)
        for part in self.data.mix:
            self._check_stack(self.model, part.seq_len)
        for each in self.data.slices:
            why = self.too_long(each.seq_len)
            if why and each.if_too_long == "refuse":
                problem = f"{each.seq_len} is not allowed; {why} (if_too_long = 'skip' leaves such models out)"
                raise ConfigError(f"data.slices.{each.name}.seq_len", problem)

    def too_long(self, length: int) -> str:
        """Why the model cannot read `length` tokens; empty where it can."""
        return next((f"{name} is {most}" for most, name in _longest(self.model) if most and most < length), "")

    def _check_stack(self, stack: ModelConfig, length: int) -> None:
        """Whether a stack can read `length` positions, packed as the data are."""
        for kind, view in stack.kinds():
            traits = kind.traits(view)
            if self.data.packing == "documents" and traits.packing == "refused":
                raise ConfigError("data.packing", f"'documents' is not allowed; {kind.group} mixes packed documents")
        for most, name in _longest(stack):
            if most is not None and most < length:
                at = f"{self.data.seq_len} is not allowed"
                why = f"{name} is {most}" + (f", its targets have {length}" if length != self.data.seq_len else "")
                raise ConfigError("data.seq_len", f"{at}; {why}")
        if self.mesh.sequence > 1:
            self._check_shards(stack, length)

    def _check_shards(self, stack: ModelConfig, length: int) -> None:
        """Whether rows of a stack can be cut along their length over the devices of mesh.sequence."""
        parts = self.mesh.sequence
        if length % parts:
            raise ConfigError("mesh.sequence", f"{parts} is not allowed; must divide the {length} positions of a row")
        for kind, view in stack.kinds():
            traits, sharing = kind.traits(view), parts * self.mesh.tensor
            if length // parts % traits.together:
                problem = f"{parts} is not allowed; a shard of {length // parts} positions must be a multiple of"
                raise ConfigError("mesh.sequence", f"{problem} {traits.together}, which {kind.group} keeps together")
            if traits.whole_rows and stack.d_model % sharing:
                problem = f"{parts} is not allowed; {kind.group} cuts model.d_model = {stack.d_model} instead, which"
                raise ConfigError("mesh.sequence", f"{problem} must be a multiple of {sharing} (sequence x tensor)")


def _longest(stack: ModelConfig) -> list[tuple[int | None, str]]:
    """(the most tokens that a part of a stack can read, what it is called)."""
    kinds = [(kind.traits(view).max_length, f"the longest sequence of {kind.group}") for kind, view in stack.kinds()]
    return [(stack.max_length, "model.max_length"), *kinds]


@dataclass(frozen=True)
class Placed(Checked):
    """The fields of `model` that write its pattern (hybrid.placement.place)."""

    mixers: PositiveInt
    base: str
    insert: str = "A"
    ratio: str | float | None = None
    count: NaturalInt | None = None
    placement: str | tuple[int, ...] = "even"
    channel: str | None = None
    channel_where: Literal["after", "even"] = "after"
    offset: NaturalInt | None = None
    period: PositiveInt | None = None


def trial_from(values: Mapping[str, Any]) -> Trial:
    """A Trial from plain nested values; raises ConfigError with the field's full name."""
    names = [f.name for f in dataclasses.fields(Trial)]
    for name in values:
        if name not in names:
            raise unknown(name, name, names)
    values = protocols.completed(values)
    for name in ("model", "data", "optimizer", "train", "evaluate", "checkpoint"):
        if not isinstance(values.get(name), Mapping):
            raise ConfigError(name, "must be given, as a group of fields")
    data = build(DataConfig, values["data"], "data")
    try:
        model, placement = model_from(values["model"], data)
    except ConfigError as error:
        raise error.within("model") from None
    given = {"placement": placement, **{k: v for k, v in values.items() if k != "placement" or v}}
    return build(Trial, {**given, "model": model, "data": data})


def model_from(values: Mapping[str, Any], data: DataConfig) -> tuple[ModelConfig, str]:
    """(model, the word of its placement or ''): pattern placed, sizes taken from the data, a budget matched."""
    from experiments.data import vocab_size

    fields = dict(values)
    names = [f.name for f in dataclasses.fields(Placed)]
    placing = {name: fields.pop(name) for name in names if name in fields}
    given = {name: value for name, value in placing.items() if value is not None and value != ""}
    word = ""
    if fields.get("pattern"):
        if given:
            raise ConfigError(next(iter(given)), "is not allowed beside pattern; give one or the other")
    elif "mixers" in given:
        placed = build(Placed, given)
        fields["pattern"], word = _place(placed)
    else:
        problem = "must be given (or mixers, base, insert, ratio or count, placement)"
        raise ConfigError("pattern", problem + nearest("pattern", [n for n in fields if n != "pattern"]))
    if isinstance(fields.get("hyena", {}), Mapping):
        longest = max([data.seq_len, *(part.seq_len for part in data.mix)])
        fields["hyena"] = {"filter_length": longest, **fields.get("hyena", {})}
    match = fields.pop("match", None)
    if fields.get("vocab_size") is None:
        fields["vocab_size"] = vocab_size(data)
    if match is None:
        return ModelConfig(**fields), word
    lengths = Lengths(data.seq_len, OBJECTIVES[data.objective].targets(data) if fields.get("encoder") else None)
    return matched(fields, build(Match, match, "match"), lengths), word


def _place(placed: Placed) -> tuple[str, str]:
    where = placed.placement
    try:
        written = place(
            placed.mixers, placed.base, placed.insert, ratio=placed.ratio, count=placed.count, where=where,
            channel=placed.channel, channel_where=placed.channel_where, offset=placed.offset, period=placed.period,
        )  # fmt: skip
    except ConfigError as error:
        field = re.sub(r"^(where|indices)", "placement", error.field)  # the config's word for both
        raise ConfigError(field, error.problem) from None
    mixed = placed.base in written and placed.insert in written and placed.base != placed.insert
    return written, (where if isinstance(where, str) else "indices") if mixed else ""
