"""The contract of a sublayer, seen from the kind: what it computes, what it depends on, how it decodes."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hybrid.accounting import state_bytes
from hybrid.sublayers import Context
from hybrid.testing.subject import BATCH, Subject, compiled, in_float64, model_forward, same
from hybrid.validation import ConfigError

LENGTHS = (1, 2, 3, 17, 33)
PIECES = (1, 2, 5)
"""Sizes of the chunks that `extend` is given."""


@in_float64
def check_reference(subject: Subject) -> None:
    """Outputs and all gradients are those of the kind's naive reference."""
    _equals_reference(subject, "plain rows", masked=False)


@in_float64
def check_masks(subject: Subject) -> None:
    """The same for rows with padding, and with several documents if the kind packs them exactly."""
    _equals_reference(subject, "masked rows", masked=True)


def _equals_reference(subject: Subject, rows: str, masked: bool) -> None:
    x = subject.inputs()
    length, packs = x.shape[1], subject.traits.packing == "exact"
    # The reference is compiled once: with masks that hide nothing it is that of plain rows.
    real, segment_ids = jnp.ones(x.shape[:2], bool), jnp.zeros(x.shape[:2], jnp.int32)
    if masked:
        real = jnp.stack([jnp.arange(length) < length - 2, jnp.arange(length) >= min(3, length - 1)])
        segment_ids = documents(x.shape[:2])
    masks = (segment_ids if packs else None, real)
    # What stands at padded positions is nobody's business.
    weights = jnp.asarray(np.random.default_rng(3).standard_normal(x.shape)) * real[..., None]
    y, gradients = subject.gradients(subject.params, x, weights, *(masks if masked else (None, None)))
    wanted, exact = subject.reference_gradients(subject.params, x, weights, *masks)
    y, wanted = y * real[..., None], wanted * real[..., None]
    same(subject, f"outputs of {rows} are not the reference's", y, wanted)
    same(subject, f"gradients of {rows} are not the reference's", gradients, exact, 1e-8)


def documents(shape: tuple[int, int]) -> Any:
    """Segment ids of rows of documents of 4 tokens and a rest, one token later in each row."""
    batch, length = shape
    rows = [(np.arange(length) - row) // 4 for row in range(batch)]
    return jnp.asarray(np.stack(rows), jnp.int32)


@in_float64
def check_causality(subject: Subject) -> None:
    """No output of a causal kind has a gradient to a later input; one of reach `none` has it to its own input alone."""
    influence = subject.influence
    zero = subject.rounding() * influence.max()
    for t, s in np.ndindex(influence.shape):
        refused = (subject.traits.causal and s > t) or (subject.traits.reach == "none" and s != t)
        assert not (refused and influence[t, s] > zero), (
            f"{subject}: output {t} depends on input {s} (gradient {influence[t, s]:.2g})"
        )


@in_float64
def check_reach(subject: Subject) -> None:
    """Outputs depend on inputs as far back as the kind says: on all, on a window and none before it, on their own."""
    influence = subject.influence
    length = influence.shape[0]
    least = 1e-9 * influence.max()
    window = _window(subject)
    for t in range(length):
        for s in range(t + 1):
            behind = t - s
            seen = behind == 0 if subject.traits.reach == "none" else window is None or behind < window
            if seen:
                assert influence[t, s] > least, f"{subject}: output {t} does not depend on input {s}"
            else:
                assert influence[t, s] <= subject.rounding() * influence.max(), (
                    f"{subject}: output {t} depends on input {s}, out of its reach"
                )
    if not subject.traits.causal and subject.traits.reach == "global":
        assert influence.min() > least, f"{subject}: sees both ways, but output {influence.argmin()} does not"


def _window(subject: Subject) -> int | None:
    """Keys that a kind of reach `window` sees, its own position included."""
    if subject.traits.reach != "window":
        return None
    return getattr(getattr(subject.view, subject.kind.group), "window", None)


@in_float64
def check_packing(subject: Subject) -> None:
    """Documents in one row are as if each stood alone, gradients included; a kind that cannot do it says so."""
    if subject.traits.packing == "refused":
        params, tokens = subject.init(subject.config), subject.tokens()
        try:
            model_forward(subject.config, params, tokens, segment_ids=jnp.zeros_like(tokens))
        except ConfigError as error:
            message = str(error)
        else:
            raise AssertionError(f"{subject}: refuses packed documents, but segment ids were taken")
        assert subject.kind.group in message, f"{subject}: the error does not name the kind: {message}"
        return
    x = subject.inputs(1)
    segment_ids = documents(x.shape[:2])
    ids = np.asarray(segment_ids[0])
    influence = subject.influence_of(x, segment_ids)
    zero = subject.rounding(segment_ids) * influence.max()
    document = np.cumsum(np.concatenate([[0], ids[1:] != ids[:-1]]))
    for t, s in np.ndindex(influence.shape):
        leaks = document[t] != document[s] and influence[t, s] > zero
        assert not leaks, f"{subject}: output {t} depends on input {s} of another document"
    packed = subject.apply(subject.params, x, segment_ids)
    for number in range(document[-1] + 1):
        part = np.flatnonzero(document == number)
        alone = subject.apply(subject.params, x[:, part])
        same(subject, f"document {number} of a packed row is not as if alone", packed[:, part], alone)


@in_float64
def check_lengths(subject: Subject) -> None:
    """Any length works. Prefixes of a causal kind are its outputs; for others each length is held to the reference."""
    x = subject.inputs(length=max(LENGTHS))
    whole = subject.reference(subject.params, x) if subject.kind.reference else subject.apply(subject.params, x)
    for length in (*LENGTHS[:-1], x.shape[1]):
        part = x[:, :length]
        y = subject.apply(subject.params, part)
        wanted = whole[:, :length] if subject.traits.causal else subject.reference(subject.params, part)
        same(subject, f"length {length}", y, wanted)


def random_cuts(length: int, seed: int) -> list[int]:
    """Sizes of chunks that make up `length`."""
    draw, left, sizes = random.Random(seed), length, []
    while left:
        sizes.append(draw.choice([piece for piece in PIECES if piece <= left]))
        left -= sizes[-1]
    return sizes


@in_float64
def check_chunks(subject: Subject, cuts: Sequence[Sequence[int]] | None = None) -> None:
    """Any way of cutting a sequence into chunks for `extend` gives the outputs of `apply`, and one state after it."""
    if not (subject.traits.decodable and subject.kind.state):
        return
    x = subject.inputs()
    length = x.shape[1]
    whole = subject.apply(subject.params, x)
    capacity = min(length + 2, subject.limit)
    fresh = subject.fresh(BATCH, capacity)
    at_once, last = subject.extend(subject.params, x, fresh, 0)
    same(subject, "extend of the whole sequence is not apply", at_once, whole)
    if not subject.traits.chunk_exact:
        return
    for sizes in cuts or [random_cuts(length, seed) for seed in range(3)]:
        state, start, outputs = fresh, 0, []
        for size in sizes:
            y, state = subject.extend(subject.params, x[:, start : start + size], state, start)
            outputs.append(y)
            start += size
        same(subject, f"chunks of {list(sizes)} are not apply", jnp.concatenate(outputs, axis=1), whole[:, :start])
        if start == length:
            same(subject, f"the state after chunks of {list(sizes)}", state, last)


@in_float64
def check_state(subject: Subject) -> None:
    """The batch is on axis 0 of every leaf, rows do not mix, shapes and types stay, bytes are those accounted for."""
    if not (subject.traits.decodable and subject.kind.state):
        return
    x = subject.inputs()
    capacity = x.shape[1]
    fresh = subject.fresh(BATCH, capacity)
    for leaf in jax.tree.leaves(fresh):
        assert leaf.shape[:1] == (BATCH,), f"{subject}: a leaf of the state has shape {leaf.shape}, without the batch"
    y, state = subject.extend(subject.params, x, fresh, 0)
    before = [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(fresh)]
    after = [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(state)]
    assert before == after, f"{subject}: extend changes the shapes or types of the state"
    taken = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    counted = state_bytes(subject.config, capacity, BATCH)
    assert taken == counted, f"{subject}: the state has {taken} bytes, the accounting says {counted}"
    swapped, turned = subject.extend(subject.params, x[::-1], jax.tree.map(lambda leaf: leaf[::-1], fresh), 0)
    same(subject, "rows of a batch mix", (swapped, turned), jax.tree.map(lambda leaf: leaf[::-1], (y, state)))


@in_float64
def check_left_padding(subject: Subject) -> None:
    """Rows with padding in front, in `extend`, give at the real tokens what they give without it, and so afterwards."""
    if not (subject.traits.decodable and subject.kind.state and subject.traits.chunk_exact):
        return
    x = subject.inputs()
    length = x.shape[1]
    lead = min(3, length - 2)
    if lead < 1:
        return
    cut, capacity = length - 1, min(length + 2, subject.limit)
    real = jnp.stack([jnp.arange(cut) >= (lead if row else 0) for row in range(BATCH)])
    y, state = subject.extend(subject.params, x[:, :cut], subject.fresh(BATCH, capacity), 0, real)
    after = jnp.asarray([[cut - lead * bool(row)] for row in range(BATCH)], jnp.int32)
    last, _ = subject.extend(subject.params, x[:, cut:], state, after)
    y = jnp.concatenate([y, last], axis=1)
    for row in range(BATCH):
        first = lead if row else 0
        alone, _ = subject.extend(subject.params, x[:, first:], subject.fresh(BATCH, capacity), 0)
        same(subject, f"{first} padded positions in front", y[row, first:], alone[row])


@in_float64
def check_initial(subject: Subject) -> None:
    """Declared shapes and types are those made; initial outputs are finite, of a sane scale, with no dead channel."""
    config = dataclasses.replace(subject.config, d_model=64)
    view = config.sublayer(subject.symbol)[1]
    made = subject.init(config)["layers"]["0"]["sublayer"]
    declared = subject.kind.spec(view)
    shapes = jax.tree.map(lambda param: param.shape, declared, is_leaf=lambda leaf: hasattr(leaf, "axes"))
    assert shapes == jax.tree.map(lambda leaf: leaf.shape, made), f"{subject}: initial shapes are not the declared ones"
    big = Subject(subject.kind, config)
    x = big.inputs(4, 33)

    def loss(params: Any, x: Any) -> Any:
        y = big.kind.apply(big.view, params, x, big.context(x))[0]
        return (y**2).sum() / 2, y

    (_, y), gradients = compiled(jax.value_and_grad(loss, has_aux=True))(made, x)
    scale = float(jnp.sqrt(jnp.mean(y**2)))
    assert 1e-4 < scale < 4, f"{subject}: initial outputs of unit inputs have a scale of {scale:.2g}"
    assert float(y.std((0, 1)).min()) > 1e-3 * scale, f"{subject}: a channel of the initial output is dead"
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradients):
        name = jax.tree_util.keystr(path)
        assert np.isfinite(leaf).all(), f"{subject}: the initial gradient to {name} is not finite"


def check_precision(subject: Subject, bound: float = 0.02) -> None:
    """bfloat16 in whole and in single steps stays within `bound` (relative, root mean square) of float32."""
    config = dataclasses.replace(subject.given, param_dtype="float32", compute_dtype="float32")
    half = dataclasses.replace(config, compute_dtype="bfloat16")
    view, half_view = (each.sublayer(subject.symbol)[1] for each in (config, half))
    params = subject.init(config)["layers"]["0"]["sublayer"]
    x = jnp.asarray(subject.inputs(2, 33), jnp.float32)

    def run(view: Any, x: Any) -> Any:
        return compiled(lambda params, x: subject.kind.apply(view, params, x, subject.context(x))[0])(params, x)

    exact, rounded = run(view, x), run(half_view, x.astype(jnp.bfloat16))
    assert rounded.dtype == jnp.bfloat16, f"{subject}: bfloat16 inputs give {rounded.dtype} outputs"
    drift = _distance(rounded, exact)
    assert drift < bound, f"{subject}: bfloat16 is {drift:.2g} away from float32"
    if not (subject.traits.decodable and subject.kind.state and subject.kind.extend and subject.traits.chunk_exact):
        return
    kind, kind_extend = subject.kind, subject.kind.extend
    shared = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.bfloat16), subject.shared)

    def steps(params: Any, x: Any) -> Any:
        def step(state: Any, t: Any) -> Any:
            positions = jnp.full((x.shape[0], 1), t, jnp.int32)
            token = jax.lax.dynamic_slice_in_dim(x, t, 1, axis=1)
            y, state, _ = kind_extend(half_view, params, token, state, Context(positions=positions, shared=shared))
            return state, y[:, 0]

        if kind.prepare is not None:
            memory, valid = subject.memory(x.shape[0])
            state = kind.prepare(half_view, params, memory.astype(x.dtype), valid)
        else:
            assert kind.state is not None
            state = kind.state(half_view, *x.shape[:2])
        return jax.lax.scan(step, state, jnp.arange(x.shape[1]))[1].swapaxes(0, 1)

    drift = _distance(compiled(steps)(params, x.astype(jnp.bfloat16)), exact)
    assert drift < bound, f"{subject}: {x.shape[1]} single steps in bfloat16 drift {drift:.2g} from float32"


def _distance(a: Any, b: Any) -> float:
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return float(np.sqrt(np.mean((a - b) ** 2) / np.mean(b**2)))
