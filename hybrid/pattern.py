"""The layer language: a model is a string of residual sublayers. No jax here.

    expand("((S-)2A-)2")  ->  ("S", "-", "S", "-", "A", "-", "S", "-", "S", "-", "A", "-")

Grammar (white space between tokens is ignored):

    pattern := item+
    item    := (symbol | branches | "(" pattern ")") count?
    branches:= "[" symbol ("|" symbol)+ "]"        one sublayer: the branches read the same input and are summed
    symbol  := a key of SYMBOLS, or a lower-case letter that the model's config defines
    count   := a number from 1

Every error is a ConfigError of the field `pattern` that points at a character, counted from 1.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from fractions import Fraction

from hybrid.segments import overlaps
from hybrid.validation import ConfigError

# Symbol -> name of its kind. A new kind adds its symbol here (and to CHANNELS when it does not mix positions).
SYMBOLS: dict[str, str] = {
    "A": "attention",
    "B": "bidirectional_attention",
    "S": "sliding_window",
    "X": "cross_attention",
    "M": "mamba",
    "D": "mamba2",
    "-": "mlp",
    "H": "hyena",
    "E": "moe",
    "R": "block_recurrent",
    "G": "gated_delta",
    "L": "rglru",
    "C": "short_conv",
}
CHANNELS: set[str] = {"-", "E"}  # act on each position alone; every other symbol is a mixer
ATTENTION: set[str] = {"A", "B"}  # what the attention ratio counts
LOCAL: set[str] = {"S", "R"}  # attention of bounded reach: reported apart

MAX_SUBLAYERS = 4096
MAX_DEPTH = 32  # of parentheses

_DIGITS = "0123456789"
_LETTERS = "abcdefghijklmnopqrstuvwxyz"
# What people write for a symbol: other notations, typographic dashes, first letters of names, look-alikes.
_MEANT = {
    "*": "A", "T": "A", "W": "S", "F": "-", "+": "-", "_": "-", "Q": "G",
    "\N{EN DASH}": "-", "\N{EM DASH}": "-", "\N{MINUS SIGN}": "-", "\N{HYPHEN}": "-", "\N{NON-BREAKING HYPHEN}": "-",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Node:
    """`times` copies of one sublayer (`body` is its string, "A" or "[A|M]") or of a group (`body` is a tree)."""

    body: str | tuple[Node, ...]
    times: int = 1


Tree = tuple[Node, ...]


@dataclasses.dataclass
class _Group:
    """A group that is being read; `start` is the index of its parenthesis, `size` its sublayers so far."""

    start: int
    items: list[Node] = dataclasses.field(default_factory=list)
    size: int = 0


def parse(pattern: str) -> Tree:
    """The tree of a pattern. `write(parse(p)) == p` for a `p` without white space and without counts of 1."""
    if not isinstance(pattern, str):
        raise ConfigError("pattern", f"{pattern!r} is not allowed; must be a string such as '(MA)4'")
    if not pattern.strip():
        raise ConfigError("pattern", f"{pattern!r} is empty; must name at least one sublayer, such as '(MA)4'")
    groups = [_Group(start=-1)]
    body: str | Tree
    i = 0
    while i < len(pattern):
        start, char = i, pattern[i]
        i += 1
        size = 1
        if char.isspace():
            continue
        if char == "(":
            if len(groups) > MAX_DEPTH:
                raise error(pattern, start, f"parentheses deeper than {MAX_DEPTH}")
            groups.append(_Group(start))
            continue
        if char == ")":
            if len(groups) == 1:
                raise error(pattern, start, "')' closes nothing")
            group = groups.pop()
            if not group.items:
                raise error(pattern, group.start, "empty group '()'")
            body, size = tuple(group.items), group.size
        elif char == "[":
            body, i = _branches(pattern, start)
        elif char in _DIGITS:
            raise error(pattern, start, f"the number {char!r} follows no symbol or group")
        elif char == "|":
            raise error(pattern, start, "'|' stands outside of brackets, as in '[A|M]'")
        elif char == "]":
            raise error(pattern, start, "']' closes nothing")
        else:
            body = _symbol(pattern, start)
        times, i = _count(pattern, i)
        groups[-1].size += size * times
        if groups[-1].size > MAX_SUBLAYERS:
            reached = len(pattern[:i].rstrip(_DIGITS)) if times > 1 else start
            raise error(pattern, reached, f"more than {MAX_SUBLAYERS} sublayers, reached")
        groups[-1].items.append(Node(body, times))
    if len(groups) > 1:
        raise error(pattern, groups[-1].start, "'(' is never closed")
    return tuple(groups[0].items)


def write(tree: Tree) -> str:
    """The string of a tree."""
    bodies = (node.body if isinstance(node.body, str) else f"({write(node.body)})" for node in tree)
    return "".join(body + (str(node.times) if node.times > 1 else "") for body, node in zip(bodies, tree, strict=True))


def expand(pattern: str) -> tuple[str, ...]:
    """One string per residual sublayer, in order; branches stay together as one string, "[A|M]"."""
    return _expanded(parse(pattern))


def _expanded(tree: Tree) -> tuple[str, ...]:
    sequence: tuple[str, ...] = ()
    for node in tree:
        sequence += ((node.body,) if isinstance(node.body, str) else _expanded(node.body)) * node.times
    return sequence


def branches(sublayer: str) -> tuple[str, ...]:
    """The symbols that one sublayer of an expanded pattern runs side by side: ("A",) of "A", ("A", "M") of "[A|M]"."""
    return tuple(sublayer.strip("[]").split("|"))


def _symbol(pattern: str, i: int) -> str:
    char = pattern[i]
    if char in SYMBOLS or char in _LETTERS:
        return char
    hint = f"; did you mean {_MEANT[char]!r}?" if char in _MEANT else ""
    allowed = ", ".join(SYMBOLS)
    raise error(pattern, i, f"unknown symbol {char!r}", f"{hint} (allowed: {allowed}, a to z, counts, ( ), [ | ])")


def _branches(pattern: str, start: int) -> tuple[str, int]:
    """Reads `[A|M]` from its bracket; gives its text without white space and the index behind it."""
    found: list[str] = []
    wants_symbol = True
    for i in range(start + 1, len(pattern)):
        char = pattern[i]
        if char.isspace():
            continue
        if wants_symbol:
            if char == "[":
                raise error(pattern, i, "brackets inside brackets")
            if char in "|])":
                raise error(pattern, i, f"a symbol is missing before {char!r}")
            if char in "(" + _DIGITS:
                raise error(pattern, i, f"{char!r} inside brackets, where a branch is one symbol")
            found.append(_symbol(pattern, i))
        elif char == "]":
            if len(found) == 1:
                raise error(pattern, start, "brackets with one branch; must be two or more, as in '[A|M]',")
            return f"[{'|'.join(found)}]", i + 1
        elif char != "|":
            raise error(pattern, i, f"{char!r} inside brackets, where a branch is one symbol")
        wants_symbol = not wants_symbol
    raise error(pattern, start, "'[' is never closed")


def _count(pattern: str, i: int) -> tuple[int, int]:
    """The count at `i` (1 where there is none) and the index behind it."""
    start = i
    while start < len(pattern) and pattern[start].isspace():
        start += 1
    end = start
    while end < len(pattern) and pattern[end] in _DIGITS:
        end += 1
    if end == start:
        return 1, i
    digits = pattern[start:end].lstrip("0")
    if not digits:
        raise error(pattern, start, "the count 0 is not allowed; must be at least 1,")
    if len(digits) > len(str(MAX_SUBLAYERS)):  # int() of a very long number is slow, or refused
        raise error(pattern, start, f"more than {MAX_SUBLAYERS} sublayers, asked for")
    return int(digits), end


def error(pattern: str, i: int, problem: str, advice: str = "") -> ConfigError:
    """`problem` at the character of index `i`, told in one line; a long pattern is cut to what is around it."""
    first, last = max(0, i - 30), i + 30
    shown = ("..." if first else "") + pattern[first:last] + ("..." if last < len(pattern) else "")
    return ConfigError("pattern", f"{problem} at character {i + 1} of {shown!r}{advice}")


# --- sequences back to strings ----------------------------------------------------------------------------------------

_LONGEST_SEARCH = 128  # sublayers; in a longer sequence `compact` looks for one repeated unit, then for runs
_SMALL = 1 << 20  # costs are whole multiples of it, so that counts decide between equal costs only


def compact(sequence: Sequence[str]) -> str:
    """The shortest readable pattern of a sequence: `expand(compact(s)) == tuple(s)`.

    Shortest in characters, where a group that stands only twice costs two more: `(A-)12`, but `M-MEM-ME` and not
    `(M-ME)2`. Between equal ones the fewest counts and groups that begin with a channel, then the longest first item.
    """
    n = len(sequence)
    if n <= _LONGEST_SEARCH:
        return write(_shortest(sequence))
    period = next((p for p in range(1, n) if n % p == 0 and sequence[p:] == sequence[:-p]), n)
    if period == 1:
        return write((Node(sequence[0], n),))
    unit = _shortest(sequence[:period]) if period <= _LONGEST_SEARCH else _runs(sequence[:period])
    return write(unit if period == n else (Node(unit, n // period),))


def _shortest(sequence: Sequence[str]) -> Tree:
    """A dynamic program over all intervals: the first item of each, one sublayer or a repeated unit, and the rest."""
    n = len(sequence)
    common = overlaps(sequence)
    cost = [[0] * (n + 1) for _ in range(n + 1)]  # of sequence[i:j]
    first: list[list[tuple[int, int]]] = [[(0, 0)] * (n + 1) for _ in range(n + 1)]  # its first item: end, times
    for i in reversed(range(n)):
        items = [(i + 1, 1, len(sequence[i]) * _SMALL)]  # end, times, cost
        for j in range(i + 1, n + 1):
            cost[i][j], end, times = min((price + cost[end][j], -end, k) for end, k, price in items if end <= j)
            first[i][j] = -end, times
            period = j - i
            for times in range(2, 2 + (common[i][j] // period if j < n else 0)):
                brackets = 0 if period == 1 else 4 if times == 2 else 2
                price = cost[i][j] + (brackets + len(str(times))) * _SMALL + 1 + (sequence[i] in CHANNELS)
                items.append((j + period * (times - 1), times, price))

    def tree(i: int, j: int) -> Tree:
        nodes: list[Node] = []
        while i < j:
            end, times = first[i][j]
            unit = i + (end - i) // times
            nodes.append(Node(sequence[i] if unit == i + 1 else tree(i, unit), times))
            i = end
        return tuple(nodes)

    return tree(0, n)


def _runs(sequence: Sequence[str]) -> Tree:
    return tuple(Node(sublayer, len(list(run))) for sublayer, run in itertools.groupby(sequence))


# --- counts -----------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Summary:
    """What a pattern is made of. `[A|M]` is one sublayer, one mixer, one attention, and a count of both its symbols."""

    sublayers: int
    counts: dict[str, int]  # by symbol as written, in the order of appearance
    mixers: int
    channels: int
    attention: int  # mixers with A or B
    local: int  # mixers with S or R and neither A nor B
    ratio: Fraction  # attention / mixers; 0 where there is no mixer


def summary(pattern: str, symbols: Mapping[str, str] | None = None) -> Summary:
    """Counts of a pattern; `symbols` says which symbol each of the user's lower-case letters stands for."""
    stands_for = {**{symbol: symbol for symbol in SYMBOLS}, **(symbols or {})}
    sequence = expand(pattern)
    counts = Counter(symbol for sublayer in sequence for symbol in branches(sublayer))
    for symbol in counts:
        if symbol not in stands_for:
            raise error(pattern, pattern.index(symbol), f"undefined symbol {symbol!r}", "; define it in 'symbols'")
    kinds = [{stands_for[symbol] for symbol in branches(sublayer)} for sublayer in sequence]
    mixers = [kind for kind in kinds if kind - CHANNELS]
    attention = sum(1 for kind in mixers if kind & ATTENTION)
    local = sum(1 for kind in mixers if kind & LOCAL and not kind & ATTENTION)
    ratio = Fraction(attention, len(mixers)) if mixers else Fraction(0)
    return Summary(len(kinds), dict(counts), len(mixers), len(kinds) - len(mixers), attention, local, ratio)


def attention_ratio(pattern: str, symbols: Mapping[str, str] | None = None) -> Fraction:
    """r = (mixers with A or B) / mixers: local attention (S, R) and cross-attention (X) are mixers without it."""
    return summary(pattern, symbols).ratio
