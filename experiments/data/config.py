"""DataConfig: what is read and what is asked of it, as checked dataclasses. No heavy imports."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, TypeVar

from experiments.data.synthetic import TASKS
from hybrid.validation import Checked, ConfigError, NaturalInt, PositiveInt, at_least, build, within

Share = Annotated[float, within(0, 1.0000001)]
OpenShare = Annotated[float, within(1e-6, 1)]

DNA_SOURCES = ("dna", "fasta")


@dataclass(frozen=True)
class MaskedConfig(Checked):
    """Masked language modelling (Devlin et al. 2019; Liu et al. 2019). Used where data.objective is `masked`."""

    rate: OpenShare = 0.15
    """Share of a row's tokens that are chosen; at least one token is."""
    mask_share: Share = 0.8
    """Of the chosen tokens: those replaced by the mask."""
    random_share: Share = 0.1
    """Of the chosen tokens: those replaced by a token drawn from the whole vocabulary. The others stay."""
    masking: Literal["static", "dynamic"] = "dynamic"
    """`static`: a window's mask is drawn once (BERT); `dynamic`: anew each time that it is read (RoBERTa)."""
    masks: PositiveInt = 1
    """Of static masking: masks of a window, taken in turn epoch by epoch (BERT's data held 10)."""
    max_predictions: PositiveInt | None = None
    """The most tokens of a row that are chosen, None: no limit (BERT: 20 of 128)."""

    def check(self) -> None:
        if self.mask_share + self.random_share > 1 + 1e-9:
            left = 1 - self.mask_share
            raise ConfigError("random_share", f"{self.random_share} is not allowed; mask_share leaves {left:.10g}")


@dataclass(frozen=True)
class SpanConfig(Checked):
    """Span corruption (Raffel et al. 2020). Used where data.objective is `span`."""

    density: OpenShare = 0.15
    """Share of the tokens that are taken out."""
    mean_length: Annotated[float, at_least(1)] = 3.0
    """Of a span."""
    sentinels: PositiveInt | None = None
    """Sentinels of the vocabulary, None: as many as a row has spans (T5: 100)."""


@dataclass(frozen=True)
class DnaConfig(Checked):
    """Which genomes, and what of them is held out. Used where data.source is `dna` or `fasta`.

    Strains of one species are near copies, so a held-out piece of one is all but there in the others. Therefore
    `region` takes one strain of each species, the first that `genomes` names, and leaves the others out altogether;
    `species` holds out whole species; `strain` holds out strains although others of their species train, which asks
    how well a model remembers rather than how well it understands. experiments/data/genomes.py has the rules.
    """

    genomes: tuple[str, ...] = ()
    """Names of genomes or the beginnings of names: "E. coli", "MG1655", "NC_000913"; empty: all."""
    split: Literal["region", "strain", "species"] = "region"
    regions: PositiveInt = 1
    """Of `region`: equal stretches that a record is cut into; each gives a tenth away, half to validation and half to
    test. data.split_seed = f shifts that tenth by f tenths, so 0 to 9 are the folds of a cross-validation."""
    validation: tuple[str, ...] = ()
    """Of `strain` and `species`: the names that are held out for validation."""
    test: tuple[str, ...] = ()
    reverse_complement: Literal["never", "half"] = "never"
    """`half`: every training row is read from the other strand with probability one half, drawn from (seed, step)."""

    def check(self) -> None:
        for name in ("validation", "test"):
            if (self.split == "region") == bool(getattr(self, name)):
                problem = "belongs to the splits 'strain' and 'species', and they to it"
                raise ConfigError(name, f"{getattr(self, name)!r} is not allowed; {problem}")


@dataclass(frozen=True)
class Form:
    """What the rows of a synthetic task are: their length, and the task's own config."""

    seq_len: int
    task: Any


@dataclass(frozen=True)
class SliceConfig(Checked):
    """Test rows of another length or with other fields of the task, scored once, at the end of a run."""

    name: str
    seq_len: PositiveInt
    task: Any
    sequences: PositiveInt | None = None
    """None: evaluate.sequences."""
    if_too_long: Literal["refuse", "skip"] = "refuse"
    """`skip`: a model that cannot read so many tokens has no score of this slice, and the reason stands beside it."""


@dataclass(frozen=True)
class PartConfig(Checked):
    """A part of a training set that is read from its beginning to its end, then comes the next one."""

    seq_len: PositiveInt
    task: Any
    examples: PositiveInt


@dataclass(frozen=True)
class DataConfig(Checked):
    """What is read. Lengths in tokens."""

    source: str
    """shakespeare, movie-reviews, stdlib, folder, dna, fasta, or tfds:NAME (experiments/data/sources.py); or the name
    of a synthetic task (experiments/data/synthetic)."""
    seq_len: PositiveInt
    """Tokens that the model reads; of span corruption those of the encoder."""
    batch_size: PositiveInt
    """Sequences a step, over all devices."""
    objective: Literal["causal", "masked", "span"] = "causal"
    """What is predicted (experiments/data/objectives.py)."""
    tokenizer: Literal["bytes", "bpe", "bases"] = "bytes"
    """`bases`: single nucleotides."""
    vocab_size: Annotated[int, at_least(258)] | None = None
    """Of a BPE; the other vocabularies have a size of their own."""
    packing: Literal["windows", "documents"] = "windows"
    """`windows`: plain windows of the token stream; `documents`: the same with documents kept apart."""
    folder: str = ""
    """Of the sources `folder` and `fasta`."""
    feature: str = "text"
    """The feature of a tfds data set that holds its text."""
    split_seed: NaturalInt = 0
    masked: MaskedConfig = field(default_factory=MaskedConfig)
    span: SpanConfig = field(default_factory=SpanConfig)
    dna: DnaConfig = field(default_factory=DnaConfig)
    task: Any = None
    """Of a synthetic task: its own fields, {"num_kv_pairs": 4}."""
    examples: NaturalInt = 0
    """Of a task: rows of the fixed training set, the same for every seed; 0: fresh rows at every step."""
    order: Literal["shuffled", "fixed"] = "shuffled"
    """In which a fixed training set is read: drawn from (seed, epoch), or always the same."""
    task_seed: NaturalInt = 0
    """Another one gives other validation, test and fixed training rows of a task."""
    slices: Any = ()
    """Of a task: {"name": {"seq_len": 128, "num_kv_pairs": 8}}, further sets of test rows (SliceConfig)."""
    mix: Any = ()
    """Of a task: parts of the training set, ({"seq_len": 64, "num_kv_pairs": 4, "examples": 1000}, ...)."""

    @property
    def is_task(self) -> bool:
        return self.source in TASKS

    def slice(self, name: str) -> SliceConfig:
        return next(each for each in self.slices if each.name == name)

    @property
    def score_names(self) -> tuple[str, ...]:
        """Scores of an evaluation that a study can be about."""
        if self.is_task:
            return (*TASKS[self.source].names, "loss")
        return (self.bits, "loss") if self.bits else ("loss",)

    @property
    def is_dna(self) -> bool:
        return self.source in DNA_SOURCES

    @property
    def bits(self) -> str | None:
        """The score that stands beside the loss: bits_per_byte or bits_per_base.

        None where the objective codes only some of the text: nats per scored token are then no code length of it.
        """
        if self.objective != "causal" or self.is_task:
            return None
        return "bits_per_base" if self.is_dna else "bits_per_byte"

    @property
    def idle(self) -> tuple[str, ...]:
        """Groups of fields that this config does not use."""
        if self.is_task:
            return (*TEXT_FIELDS, *(("examples",) if self.mix else ()))
        used = {self.objective, "dna" if self.is_dna else ""}
        return (*(name for name in ("masked", "span", "dna") if name not in used), *TASK_FIELDS)

    def check(self) -> None:
        if self.is_task:
            return self._check_task()
        for name in TASK_FIELDS:
            default = next(f.default for f in dataclasses.fields(self) if f.name == name)
            if getattr(self, name) not in (default, [], {}):
                problem = f"{getattr(self, name)!r} is not allowed; belongs to synthetic tasks, {self.source!r} is none"
                raise ConfigError(name, problem)
            object.__setattr__(self, name, default)
        if self.tokenizer == "bpe" and self.vocab_size is None:
            raise ConfigError("vocab_size", "must be given for the bpe tokenizer")
        if self.tokenizer != "bpe" and self.vocab_size is not None:
            problem = f"{self.vocab_size} is not allowed; {self.tokenizer} have a vocabulary of their own"
            raise ConfigError("vocab_size", problem)
        if self.vocab_size is not None and self.vocab_size > 65536:
            raise ConfigError("vocab_size", f"{self.vocab_size} is not allowed; must be at most 65536")
        if (self.source in ("folder", "fasta")) != bool(self.folder):
            problem = f"{self.folder!r} is not allowed; belongs to the sources 'folder' and 'fasta', and they to it"
            raise ConfigError("folder", problem)
        if self.tokenizer == "bases" and not self.is_dna:
            allowed = ", ".join(DNA_SOURCES)
            raise ConfigError("tokenizer", f"'bases' is not allowed; {self.source!r} is no DNA (sources: {allowed})")
        if self.dna.reverse_complement != "never" and self.tokenizer != "bases":
            raise ConfigError("dna.reverse_complement", "'half' is not allowed; needs data.tokenizer = 'bases'")
        if self.objective == "span" and self.packing == "documents":
            raise ConfigError("packing", "'documents' is not allowed; spans are cut out of plain windows")
        if self.objective == "span":
            from experiments.data.spans import lengths

            spans = lengths(self.seq_len, self.span.density, self.span.mean_length).spans
            if self.span.sentinels is not None and self.span.sentinels < spans:
                problem = f"{self.span.sentinels} is not allowed; a row has {spans} spans"
                raise ConfigError("span.sentinels", problem)

    def _check_task(self) -> None:
        """Makes dataclasses of `task`, `slices` and `mix`, and holds them to the task's own rules."""
        for name in ("objective", "tokenizer", "packing"):
            default = next(f.default for f in dataclasses.fields(self) if f.name == name)
            if getattr(self, name) != default:
                problem = f"{getattr(self, name)!r} is not allowed; {self.source!r} is a synthetic task"
                raise ConfigError(name, problem)
        task = TASKS[self.source]
        own = _fields_of(task.config, self.task or {}, None, "task")
        object.__setattr__(self, "task", own)
        self._check_form("", self.seq_len, own, own)
        slices = self.slices or ()
        if isinstance(slices, Mapping):
            slices = [{"name": str(name), **_group(value, f"slices.{name}")} for name, value in slices.items()]
        made = tuple(
            _form(SliceConfig, each, own, self.seq_len, f"slices.{_name(each, i)}") for i, each in _each(slices)
        )
        object.__setattr__(self, "slices", made)
        mix = tuple(_form(PartConfig, each, own, self.seq_len, f"mix[{i}]") for i, each in _each(self.mix or ()))
        object.__setattr__(self, "mix", mix)
        if mix and self.examples:
            raise ConfigError("examples", f"{self.examples} is not allowed beside mix, whose parts say how many")
        names = [each.name for each in made]
        for name in names:
            if names.count(name) > 1 or not name or "/" in name or name.startswith("mix "):
                raise ConfigError("slices", f"{name!r} is not allowed; a slice has a name of its own, without '/'")
        for each in made:
            self._check_form(f"slices.{each.name}.", each.seq_len, each.task, own)
        for i, part in enumerate(mix):
            self._check_form(f"mix[{i}].", part.seq_len, part.task, own)

    def _check_form(self, where: str, seq_len: int, config: Any, own: Any) -> None:
        task = TASKS[self.source]
        try:
            task.check(config, seq_len)
        except ConfigError as error:
            raise ConfigError(f"{where}{error.field}", error.problem) from None
        if task.vocab_size(config) > task.vocab_size(own):
            problem = (
                f"has {task.vocab_size(config)} tokens, data.task {task.vocab_size(own)}; a model has one vocabulary"
            )
            raise ConfigError(f"{where}task", problem)


TEXT_FIELDS = (
    "objective", "tokenizer", "vocab_size", "packing", "folder", "feature", "split_seed", "masked", "span", "dna"
)  # fmt: skip
TASK_FIELDS = ("task", "examples", "order", "task_seed", "slices", "mix")
"""What a synthetic task does not use, and what only a task does."""

F = TypeVar("F", SliceConfig, PartConfig)


def _each(values: Any) -> list[tuple[int, Any]]:
    if isinstance(values, str) or not isinstance(values, list | tuple):
        raise ConfigError("slices", f"{values!r} is not allowed; must be groups of fields")
    return list(enumerate(values))


def _name(value: Any, index: int) -> str:
    return str(value.get("name", index)) if isinstance(value, Mapping) else str(index)


def _group(value: Any, field: str) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise ConfigError(field, f"{value!r} is not allowed; must be a group of fields")
    return dict(value)


def _fields_of(cls: type, values: Any, base: Any, where: str) -> Any:
    """The task's config: `values` over the fields of `base`."""
    if isinstance(values, cls):
        return values
    given = {} if base is None else {f.name: getattr(base, f.name) for f in dataclasses.fields(base)}
    return build(cls, {**given, **_group(values, where)}, where)


def _form(cls: type[F], values: Any, own: Any, seq_len: int, where: str) -> F:
    """A slice or a part of a mix: its own fields, and beside them (or below `task`) those of the task that differ."""
    if isinstance(values, cls):
        return values
    given = _group(values, where)
    names = [f.name for f in dataclasses.fields(cls) if f.name != "task"]
    own_fields = {name: given.pop(name) for name in names if name in given}
    task = {**_group(given.pop("task", {}), f"{where}.task"), **given}
    return build(cls, {"seq_len": seq_len, **own_fields, "task": _fields_of(type(own), task, own, where)}, where)
