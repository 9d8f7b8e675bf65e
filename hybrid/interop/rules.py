"""Rules: how the tensors of a published layout and the leaves of ours correspond. One list serves both directions.

    rules = [
        *norm("model.norm", "final_norm"),
        same("model.embed_tokens.weight", "embedding/tokens"),
        *linear("model.layers.0.self_attn.q_proj", "layers/0/sublayer/query"),
        joined("model.layers.0.mixer.in_proj.weight", ["layers/0/sublayer/in_z", "layers/0/sublayer/in_x"], TRANSPOSED),
        stacked([f"experts.{e}.w1.weight" for e in range(8)], "layers/1/sublayer/gate", TRANSPOSED),
        tied("lm_head.weight", "model.embed_tokens.weight"),
        ignored("model.layers.*.rotary_emb.inv_freq", "made from the config"),
    ]

A path of ours is a leaf of `hybrid.layout.per_layer(params)`, written with slashes. A rule cuts the tensors of theirs
into pieces, one for each leaf of ours, and changes each piece by steps; on saving all of it runs backwards. Shapes are
derived from those of our declarations, so a file is checked by its header, before any number is read.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from hybrid.lazy import np
from hybrid.validation import ConfigError

Shape = tuple[int, ...]


# --- steps: one change of one array -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Step:
    """One change of an array, there and back."""

    load: Callable[[Any], Any]
    """Theirs -> ours."""
    save: Callable[[Any], Any]
    """Ours -> theirs."""
    shape: Callable[[Shape], Shape] = lambda shape: shape
    """The shape of ours -> the shape of theirs."""


def _swapped(shape: Shape) -> Shape:
    return (*shape[:-2], shape[-1], shape[-2])


TRANSPOSED = Step(lambda w: w.swapaxes(-1, -2), lambda w: w.swapaxes(-1, -2), _swapped)
"""torch's Linear holds (out, in), ours (in, out); leading axes (experts) stay."""

CONV = Step(lambda w: w[:, 0].T, lambda w: w.T[:, None], lambda shape: (shape[1], 1, shape[0]))
"""torch's depthwise Conv1d holds (channels, 1, k), ours (k, channels); both meet the oldest input first."""


def plus(value: float) -> Step:
    """Ours is theirs + value: Gemma stores the w of a norm that multiplies by 1 + w."""
    return Step(lambda w: w + np.float32(value), lambda w: w - np.float32(value))


def times(factor: Any) -> Step:
    """Ours is theirs * factor (a number, or an array that meets ours by broadcasting): folds a published multiplier."""
    return Step(lambda w: w * np.asarray(factor, np.float32), lambda w: w / np.asarray(factor, np.float32))


def permuted(*axes: int) -> Step:
    """Axis i of ours is axis axes[i] of theirs."""
    back = tuple(sorted(range(len(axes)), key=lambda i: axes[i]))
    return Step(lambda w: w.transpose(axes), lambda w: w.transpose(back), lambda s: tuple(s[i] for i in back))


def reshaped(theirs: Shape, ours: Shape) -> Step:
    """The same numbers in the same order."""
    return Step(lambda w: w.reshape(ours), lambda w: w.reshape(theirs), lambda _: theirs)


def reordered(index: Sequence[int], axis: int) -> Step:
    """Entry i of ours along `axis` is entry index[i] of theirs (a permutation)."""
    forward = list(index)
    back = sorted(range(len(forward)), key=lambda i: forward[i])
    return Step(lambda w: np.take(w, forward, axis), lambda w: np.take(w, back, axis))


# --- entries of a table -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Leaf:
    """A leaf of ours, and the steps that make it from its piece of theirs."""

    path: str
    steps: tuple[Step, ...] = ()

    def theirs_shape(self, shape: Shape) -> Shape:
        for step in reversed(self.steps):
            shape = step.shape(shape)
        return shape

    def load(self, piece: Any) -> Any:
        for step in self.steps:
            piece = step.load(piece)
        return piece

    def save(self, piece: Any) -> Any:
        for step in reversed(self.steps):
            piece = step.save(piece)
        return piece


@dataclass(frozen=True)
class Rule:
    """Each of `theirs` is the pieces of the leaves, joined along `axis`; several of theirs are stacked in ours.

    One of theirs and one of ours is the common case. With n of theirs, ours has a leading axis of n (experts).
    """

    theirs: tuple[str, ...]
    ours: tuple[Leaf, ...]
    axis: int = 0
    is_stacked: bool = False
    stand_in: str | None = None
    """Another tensor, of the same shape, that is read where theirs is missing (a head that was saved tied)."""
    whole: tuple[Step, ...] = ()
    """Steps of a whole tensor of theirs before it is cut: rows that lie head by head are brought together."""


@dataclass(frozen=True)
class Tied:
    """A tensor that may be stored a second time; allowed where it equals `same_as`, and not written."""

    theirs: str
    same_as: str


@dataclass(frozen=True)
class Ignored:
    """Tensors that are no parameters of ours, by a pattern of names (`*` for any text), and why."""

    pattern: str
    why: str


@dataclass(frozen=True)
class Constant:
    """A leaf of ours that theirs has no tensor for, because it always is `value` there."""

    ours: str
    value: float


Entry = Rule | Tied | Ignored | Constant


def same(theirs: str, ours: str, *steps: Step) -> Rule:
    """One tensor, one leaf."""
    return Rule((theirs,), (Leaf(ours, steps),))


def linear(theirs: str, ours: str, bias: bool = False, *steps: Step) -> list[Entry]:
    """A torch Linear `theirs` (.weight, .bias) and our leaf with its `_bias`; `steps` are of the weight."""
    rules: list[Entry] = [same(f"{theirs}.weight", ours, TRANSPOSED, *steps)]
    return [*rules, same(f"{theirs}.bias", f"{ours}_bias")] if bias else rules


def norm(theirs: str, ours: str, bias: bool = False, *steps: Step) -> list[Entry]:
    """A norm `theirs` (.weight, .bias) and ours (scale, bias); `steps` are of the scale."""
    rules: list[Entry] = [same(f"{theirs}.weight", f"{ours}/scale", *steps)]
    return [*rules, same(f"{theirs}.bias", f"{ours}/bias")] if bias else rules


def joined(theirs: str, ours: Sequence[str | Leaf], *steps: Step, axis: int = 0, whole: tuple[Step, ...] = ()) -> Rule:
    """One tensor that holds several leaves along its `axis` (0: the rows of a torch Linear, its outputs).

    `steps` are of every leaf that has none of its own, `whole` of the tensor before it is cut.
    """
    leaves = tuple(leaf if isinstance(leaf, Leaf) else Leaf(leaf, steps) for leaf in ours)
    return Rule((theirs,), leaves, axis, whole=whole)


def stacked(theirs: Sequence[str], ours: str | Sequence[str | Leaf], *steps: Step, axis: int = 0) -> Rule:
    """n tensors (one an expert) and leaves with a leading axis of n; with several leaves each tensor is `joined`."""
    names = [ours] if isinstance(ours, str) else ours
    leaves = tuple(leaf if isinstance(leaf, Leaf) else Leaf(leaf, steps) for leaf in names)
    return Rule(tuple(theirs), leaves, axis, is_stacked=True)


def or_else(rules: Sequence[Entry], stand_in: str) -> list[Entry]:
    """The same rules, reading `stand_in` where theirs is missing."""
    return [replace(rule, stand_in=stand_in) if isinstance(rule, Rule) else rule for rule in rules]


def tied(theirs: str, same_as: str) -> Tied:
    return Tied(theirs, same_as)


def ignored(pattern: str, why: str) -> Ignored:
    return Ignored(pattern, why)


def constant(ours: str, value: float) -> Constant:
    return Constant(ours, value)


# --- a table against the shapes of a model ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Table:
    """The entries of a model beside the shapes of its leaves: {"layers/0/norm/scale": (64,), ...}."""

    entries: tuple[Entry, ...]
    shapes: Mapping[str, Shape]

    def __post_init__(self) -> None:
        found = [leaf.path for rule in self.rules for leaf in rule.ours] + [entry.ours for entry in self.constants]
        twice = {path for path in found if found.count(path) > 1} if len(set(found)) < len(found) else set()
        faults = {
            "leaves without a rule": set(self.shapes) - set(found),
            "rules of leaves that are not there": set(found) - set(self.shapes),
            "leaves with two rules": twice,
        }
        for what, paths in faults.items():
            if paths:  # a fault of the family's file, not of what a user gave
                raise ValueError(f"{what}: {few(sorted(paths))}")

    @property
    def rules(self) -> list[Rule]:
        return [entry for entry in self.entries if isinstance(entry, Rule)]

    @property
    def constants(self) -> list[Constant]:
        return [entry for entry in self.entries if isinstance(entry, Constant)]

    def pieces(self, rule: Rule) -> list[Shape]:
        """The shapes of the pieces of one tensor of theirs, one for each leaf."""
        shapes = []
        for leaf in rule.ours:
            shape = self.shapes[leaf.path]
            if rule.is_stacked:
                if shape[0] != len(rule.theirs):
                    raise ValueError(f"{leaf.path} of shape {shape} cannot stack {len(rule.theirs)} tensors")
                shape = shape[1:]
            shapes.append(leaf.theirs_shape(shape))
        return shapes

    def expected(self) -> dict[str, Shape]:
        """The names and shapes of theirs that must be there."""
        wanted: dict[str, Shape] = {}
        for rule in self.rules:
            first, *rest = self.pieces(rule)
            shape = list(first)
            for other in rest:
                shape[rule.axis] += other[rule.axis]
            for name in rule.theirs:
                if name in wanted:
                    raise ValueError(f"{name} has two rules")
                wanted[name] = Leaf("", rule.whole).theirs_shape(tuple(shape))
        return wanted

    def check(self, found: Mapping[str, Shape]) -> None:
        """ConfigError that names the tensors that are missing, left over or of a wrong shape; all of it in one line."""
        wanted = self.expected()
        twice = {entry.theirs: wanted[entry.same_as] for entry in self.entries if isinstance(entry, Tied)}
        patterns = [entry.pattern for entry in self.entries if isinstance(entry, Ignored)]
        known = {**wanted, **twice}
        stand_ins = {name: rule.stand_in for rule in self.rules for name in rule.theirs if rule.stand_in}
        missing = [name for name in wanted if name not in found and stand_ins.get(name) not in found]
        wrong = [
            f"{name} has shape {found[name]} where the config says {shape}"
            for name, shape in known.items()
            if name in found and tuple(found[name]) != shape
        ]
        extra = [n for n in found if n not in known and not any(fnmatch.fnmatchcase(n, p) for p in patterns)]
        problems = {"missing": missing, "left over": extra, "wrong shape": wrong}
        words = [f"{what}: {few(names)}" for what, names in problems.items() if names]
        if words:
            raise ConfigError("tensors", "; ".join(words))

    def load(self, read: Callable[[str], Any], has: Callable[[str], bool], put: Callable[..., None]) -> None:
        """Reads each tensor once and puts its pieces: put(path, expert or None, array). Two at most are in memory."""
        for rule in self.rules:
            shapes = self.pieces(rule)
            for i, name in enumerate(rule.theirs):
                tensor = read(name if rule.stand_in is None or has(name) else rule.stand_in)
                pieces = [Leaf("", rule.whole).load(tensor)]
                if len(shapes) > 1:
                    pieces = np.split(pieces[0], np.cumsum([shape[rule.axis] for shape in shapes[:-1]]), rule.axis)
                for leaf, piece in zip(rule.ours, pieces, strict=True):
                    put(leaf.path, i if rule.is_stacked else None, leaf.load(piece))
        for constant in self.constants:
            put(constant.ours, None, np.full(self.shapes[constant.ours], constant.value, np.float32))
        for entry in self.entries:
            if not isinstance(entry, Tied) or not has(entry.theirs):
                continue
            if not np.array_equal(read(entry.theirs), read(entry.same_as)):
                raise ConfigError("tensors", f"{entry.theirs} differs from {entry.same_as}; the config ties them")

    def save(self, get: Callable[[str], Any]) -> Iterator[tuple[str, Shape, Callable[[], Any]]]:
        """(name, shape, maker) of every tensor of theirs, in the order of the table; get(path) -> array of ours."""
        for entry in self.constants:
            if not (get(entry.ours) == np.float32(entry.value)).all():
                raise ConfigError(entry.ours, f"must be {entry.value:g} everywhere; the family has no tensor for it")
        wanted = self.expected()
        for rule in self.rules:
            for i, name in enumerate(rule.theirs):

                def make(rule: Rule = rule, i: int = i) -> Any:
                    parts = [leaf.save(get(leaf.path)[i] if rule.is_stacked else get(leaf.path)) for leaf in rule.ours]
                    return Leaf("", rule.whole).save(parts[0] if len(parts) == 1 else np.concatenate(parts, rule.axis))

                yield name, wanted[name], make


def few(names: Sequence[str], most: int = 4) -> str:
    """The first few names, and how many more there are."""
    shown = ", ".join(names[:most])
    return f"{shown} and {len(names) - most} more" if len(names) > most else shown
