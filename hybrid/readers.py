"""Patterns from the notations of published models, one function each. No jax here."""

from __future__ import annotations

from collections.abc import Sequence

from hybrid.pattern import MAX_SUBLAYERS, SYMBOLS, branches, compact, error, expand
from hybrid.placement import Ratio, channel_of, even, mixer, place, share, spread_channels, whole
from hybrid.validation import ConfigError

_MEGATRON = {"M": "D", "*": "A", "-": "-", "E": "E"}  # Megatron-LM's symbol -> ours; its M is Mamba-2


def from_megatron(string: str) -> str:
    """The pattern of a Megatron-LM hybrid string such as "M-M*-"; the `|` between pipeline stages are dropped."""
    if not isinstance(string, str):
        raise ConfigError("pattern", f"{string!r} is not allowed; must be a string such as 'M-M*-'")
    for i, symbol in enumerate(string):
        if symbol not in _MEGATRON and symbol != "|" and not symbol.isspace():
            raise error(string, i, f"unknown Megatron symbol {symbol!r}", f" (allowed: {', '.join(_MEGATRON)}, |)")
    sequence = [_MEGATRON[symbol] for symbol in string if symbol in _MEGATRON]
    if not sequence:
        raise ConfigError("pattern", f"{string!r} is empty; must name at least one layer, such as 'M-M*-'")
    return compact(sequence)


def to_megatron(pattern: str) -> str:
    """A pattern of D, A, - and E in Megatron-LM's letters, one a sublayer."""
    letters = {ours: theirs for theirs, ours in _MEGATRON.items()}
    sequence = expand(pattern)
    for sublayer in sequence:
        if sublayer not in letters:
            name = SYMBOLS.get(sublayer, "branches" if len(branches(sublayer)) > 1 else "user symbol")
            problem = f"{sublayer!r} ({name}) has no Megatron symbol"
            raise error(pattern, pattern.find(sublayer[0]), problem, f" (allowed: {', '.join(letters)})")
    return "".join(letters[sublayer] for sublayer in sequence)


def from_period(
    layers: int,
    attn_period: int,
    attn_offset: int,
    expert_period: int | None = None,
    expert_offset: int | None = None,
    base: str = "M",
    insert: str = "A",
    channel: str = "-",
    expert: str = "E",
) -> str:
    """The pattern of a Hugging Face config in Jamba's style, where a layer is a mixer and a channel.

    Layer i has attention where i % attn_layer_period == attn_layer_offset, and experts where the same holds of
    expert_layer_period and expert_layer_offset (None: no experts).
    """
    whole("layers", layers, 1, MAX_SUBLAYERS // 2)
    mixer(base, "base")
    mixer(insert, "insert", base)
    channel_of(channel)
    channel_of(expert)
    attention = _every("attn", attn_period, attn_offset)
    experts = range(0)
    if expert_period is not None or expert_offset is not None:
        experts = _every("expert", expert_period, expert_offset)
    stack: list[str] = []
    for i in range(layers):
        stack += [insert if i in attention else base, expert if i in experts else channel]
    return compact(stack)


def _every(what: str, period: int | None, offset: int | None) -> range:
    whole(f"{what}_period", period, 1, MAX_SUBLAYERS)
    assert period is not None
    whole(f"{what}_offset", offset, 0, period - 1)
    assert offset is not None
    return range(offset, MAX_SUBLAYERS, period)


def from_indices(
    layers: int, attention_indices: Sequence[int], base: str = "M", insert: str = "A", channel: str | None = "-"
) -> str:
    """The pattern of a config that lists its attention layers (from 0), where a layer is a mixer and a channel."""
    return place(layers, base, insert, indices=attention_indices, channel=channel)


def from_shares(
    sublayers: int, attention: Ratio, channels: Ratio = 0.0, base: str = "D", insert: str = "A", channel: str = "-"
) -> str:
    """The pattern that Megatron-LM allocates from its ratio flags: shares of all sublayers, rounded to whole ones.

    `place` refuses to round and counts its ratio over the mixers; this one is for reading published settings.
    """
    whole("sublayers", sublayers, 1, MAX_SUBLAYERS)
    mixer(base, "base")
    mixer(insert, "insert", base)
    channel_of(channel, base, insert)
    count, n_channels = round(share(attention, "attention") * sublayers), round(share(channels, "channels") * sublayers)
    if count + n_channels > sublayers:
        raise ConfigError("channels", f"{n_channels} beside {count} attention sublayers; must fit into {sublayers}")
    positions = set(even(sublayers, count))
    stack = [insert if i in positions else base for i in range(sublayers)]
    return compact(spread_channels(stack, base, channel, n_channels))
