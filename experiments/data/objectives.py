"""The table of objectives: rows of the token stream -> a batch. What is drawn is a function of (seed, step, row).

Letters: B rows, L = seq_len. A row is `width` tokens of the stream, and rows begin `stride` tokens apart.

| objective | reads | batch |
|---|---|---|
| causal | L + 1, L apart | tokens, labels (B, L): the next token |
| masked | L, L apart | tokens (B, L), label_positions and labels (B, K) |
| span | as many as fill L tokens | tokens (B, L), decoder_tokens and labels (B, T) |

Packed documents add segment_ids (B, L). Label -1 is not scored.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from experiments.data import masking, spans
from experiments.data.chance import uniforms
from experiments.data.vocabulary import Vocabulary
from hybrid.lazy import np
from hybrid.validation import ConfigError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from experiments.data.config import DataConfig
    from hybrid.config import ModelConfig

Batch: TypeAlias = "dict[str, NDArray[np.int32]]"
IGNORED = -1


@dataclass(frozen=True)
class Rows:
    """Rows of the stream, and what makes each of them this one: all that chance may depend on."""

    tokens: NDArray
    """(B, width) int32"""
    place: NDArray
    """(B,) how many rows were read before this one; of a held-out split its window."""
    window: NDArray
    """(B,) which window of the stream it is"""
    epoch: NDArray
    """(B,) how often the stream was read before"""
    seed: int
    split: str


Make = Callable[["DataConfig", Vocabulary, Rows], Batch]


@dataclass(frozen=True)
class Objective:
    """A row of the table."""

    stride: Callable[[DataConfig], int]
    width: Callable[[DataConfig], int]
    make: Make
    fits: Callable[[DataConfig, ModelConfig], None]
    """Raises ConfigError where a model cannot be trained so."""
    targets: Callable[[DataConfig], int]
    """Positions that the decoder, or the only stack, has."""


# --- causal -----------------------------------------------------------------------------------------------------------


def packed_windows(tokens: NDArray, separator: int) -> Batch:
    """(B, L + 1) -> plain windows: a document sees what stood before it."""
    return {"tokens": tokens[:, :-1].copy(), "labels": tokens[:, 1:].copy()}


def packed_documents(tokens: NDArray, separator: int) -> Batch:
    """(B, L + 1) -> the same windows with documents numbered from 1; no label from one document into the next."""
    labels = np.where(tokens[:, 1:] == separator, np.int32(IGNORED), tokens[:, 1:])
    segments = documents(tokens, separator)[:, :-1]
    return {"tokens": tokens[:, :-1].copy(), "labels": labels, "segment_ids": segments.copy()}


def documents(tokens: NDArray, separator: int) -> NDArray:
    """(B, L) -> the document of each token, from 1.

    A separator opens its document and nothing else is one, so segments need no table of offsets.
    """
    opens = tokens == separator
    opens[:, 0] = True
    return np.cumsum(opens, axis=1, dtype=np.int32)


PACKINGS = {"windows": packed_windows, "documents": packed_documents}


def _causal(config: DataConfig, ids: Vocabulary, rows: Rows) -> Batch:
    batch = PACKINGS[config.packing](rows.tokens, ids.separator)
    batch["labels"] = _scored(batch["labels"], ids)
    return batch


# --- masked -----------------------------------------------------------------------------------------------------------


def _masked(config: DataConfig, ids: Vocabulary, rows: Rows) -> Batch:
    assert ids.mask is not None
    about, length = config.masked, config.seq_len
    static = about.masking == "static" or rows.split != "train"
    row = rows.window * about.masks + rows.epoch % about.masks if static else rows.place
    uniform = uniforms(rows.seed, f"mask {rows.split}", row, masking.draws(length, about))
    may = ~np.isin(rows.tokens, (ids.separator, *ids.unscored))
    made = masking.mask(rows.tokens, may, uniform, about, ids.mask, ids.size)
    batch = {"tokens": made.tokens, "labels": made.labels, "label_positions": made.positions}
    if config.packing == "documents":
        batch["segment_ids"] = documents(rows.tokens, ids.separator)
    return batch


# --- span corruption --------------------------------------------------------------------------------------------------


def span_lengths(config: DataConfig) -> spans.Lengths:
    return spans.lengths(config.seq_len, config.span.density, config.span.mean_length)


def _span(config: DataConfig, ids: Vocabulary, rows: Rows) -> Batch:
    assert ids.end is not None and ids.start is not None
    about = span_lengths(config)
    uniform = uniforms(rows.seed, f"span {rows.split}", rows.place, spans.draws(about))
    inputs, targets = spans.corrupt(rows.tokens, spans.noise_mask(about, uniform), ids.size - 1, ids.end)
    start = np.full((len(targets), 1), ids.start, np.int32)
    decoder_tokens = np.concatenate([start, targets[:, :-1]], axis=1)
    return {"tokens": inputs, "decoder_tokens": decoder_tokens, "labels": _scored(targets, ids)}


def _scored(labels: NDArray, ids: Vocabulary) -> NDArray:
    return np.where(np.isin(labels, ids.unscored), np.int32(IGNORED), labels) if ids.unscored else labels


# --- which models -----------------------------------------------------------------------------------------------------


def _fits_causal(data: DataConfig, model: ModelConfig) -> None:
    _no_encoder(data, model)
    _sees_no_later_tokens(data, model)


def _fits_masked(data: DataConfig, model: ModelConfig) -> None:
    _no_encoder(data, model)
    if all(kind.traits(view).causal for kind, view in model.kinds()):
        problem = f"'masked' is not allowed; no sublayer of {model.pattern!r} sees later tokens (B does)"
        raise ConfigError("data.objective", problem)


def _fits_span(data: DataConfig, model: ModelConfig) -> None:
    if model.encoder is None:
        problem = "must be given for data.objective = 'span': the encoder reads the text, model.pattern writes spans"
        raise ConfigError("model.encoder", problem)
    _sees_no_later_tokens(data, model)


def _no_encoder(data: DataConfig, model: ModelConfig) -> None:
    if model.encoder is not None:
        problem = f"{model.encoder!r} is not allowed; data.objective = {data.objective!r} has one stack (span has two)"
        raise ConfigError("model.encoder", problem)


def _sees_no_later_tokens(data: DataConfig, model: ModelConfig) -> None:
    for kind, view in model.kinds():
        if not kind.traits(view).causal:
            problem = f"{kind.symbol} ({kind.group}) sees later tokens; not for next tokens"
            raise ConfigError("model.pattern", problem)


OBJECTIVES: dict[str, Objective] = {
    "causal": Objective(
        stride=lambda config: config.seq_len,
        width=lambda config: config.seq_len + 1,
        make=_causal,
        fits=_fits_causal,
        targets=lambda config: config.seq_len,
    ),
    "masked": Objective(
        stride=lambda config: config.seq_len,
        width=lambda config: config.seq_len,
        make=_masked,
        fits=_fits_masked,
        targets=lambda config: config.seq_len,
    ),
    "span": Objective(
        stride=lambda config: span_lengths(config).raw,
        width=lambda config: span_lengths(config).raw,
        make=_span,
        fits=_fits_span,
        targets=lambda config: span_lengths(config).targets,
    ),
}
