"""The contract of a sublayer, seen from a model: every way of compiling and training a stack gives the same numbers."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hybrid.layout import arrange, per_layer
from hybrid.losses import token_losses
from hybrid.model import extend, init_state
from hybrid.params import abstract
from hybrid.testing.subject import Subject, compiled, in_float64, model_forward, model_state, same
from hybrid.traffic import traffic
from hybrid.validation import ConfigError

DEPTH = 2
SEQUENCE = 8
"""Length of the rows that are cut: 4 positions a shard."""


def loss_and_gradients(config: Any, tokens: Any, **options: Any) -> Any:
    """Compiled: params -> loss, gradients per layer."""

    def loss(params: Any) -> Any:
        hidden, aux = model_forward(config, params, tokens, **options)
        nats, _ = token_losses(config, params, hidden, jnp.roll(tokens, -1, axis=1))
        return nats.mean() + sum(aux.losses.values())

    def run(params: Any) -> Any:
        value, gradients = jax.value_and_grad(loss)(arrange(config, params))
        return value, per_layer(gradients)

    return compiled(run)


@in_float64
def check_compilation(subject: Subject) -> None:
    """Unrolled, or scanned and computed again in the backward pass: one tree of parameters, one loss and gradient."""
    plain = subject.stack(DEPTH, scan_layers=False)
    params, tokens = subject.init(plain), subject.tokens()
    for remat in ("sublayer", "unit"):
        same_tree = jax.tree.map(
            lambda leaf: leaf.shape, abstract(subject.stack(DEPTH, scan_layers=False, remat=remat))
        )
        assert same_tree == jax.tree.map(lambda leaf: leaf.shape, params), f"{subject}: remat changes the parameters"
    wanted = loss_and_gradients(plain, tokens)(params)
    again = loss_and_gradients(subject.stack(DEPTH, scan_layers=True, remat="unit"), tokens)(params)
    same(subject, "scanned with remat", again, wanted)


@in_float64
def check_transforms(subject: Subject) -> None:
    """The same without jit, and for several sets of parameters under vmap."""
    x = subject.inputs()
    sets = (subject.params, subject.initial)
    one_by_one = jnp.stack([subject.apply(params, x) for params in sets])
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *sets)
    about = subject.context(x)
    together = compiled(jax.vmap(lambda params: subject.kind.apply(subject.view, params, x, about)[0]))(stacked)
    same(subject, "vmap over parameters is not one after another", together, one_by_one)
    eager = subject.kind.apply(subject.view, subject.params, x, about)[0]
    same(subject, "without jit", eager, one_by_one[0])


@in_float64
def check_capacity(subject: Subject) -> None:
    """Writing past the capacity is refused before it starts; where it is traced, the logits are not numbers."""
    config, tokens = subject.stack(1), subject.tokens()
    params = subject.init(config)
    if not subject.traits.decodable:
        _refused(subject, "a state of what cannot decode", lambda: init_state(config, 1, 4))
        return
    room = tokens.shape[1]
    state = model_state(config, params, tokens, room)
    longer = jnp.concatenate([tokens, tokens], axis=1)
    _refused(subject, f"{2 * room} tokens in room for {room}", lambda: extend(config, params, longer, state))
    traced = compiled(lambda tokens, state: extend(config, params, tokens, state))
    logits, full = traced(tokens, state)
    assert np.isfinite(logits).all(), f"{subject}: tokens up to the capacity did not give numbers under jit"
    logits, _ = traced(tokens, full)
    assert np.isnan(logits).all(), f"{subject}: tokens past the capacity gave numbers under jit"
    if subject.limit < 1 << 30:
        longest = subject.limit + 1
        _refused(subject, "a state longer than it takes", lambda: model_state(config, params, tokens, longest))


def _refused(subject: Subject, what: str, action: Any) -> None:
    try:
        action()
    except ConfigError:
        return
    raise AssertionError(f"{subject}: {what} is not refused")


@in_float64
def check_dropout(subject: Subject) -> None:
    """Dropout acts, differs between keys, is the same for one key, and the same scanned and unrolled."""
    tokens = subject.tokens()
    losses, params = {}, subject.init(subject.stack(DEPTH, scan_layers=False))
    for scan_layers in (False, True):
        config = subject.stack(DEPTH, scan_layers=scan_layers, dropout=0.3)
        hidden = compiled(lambda params, key, config=config: model_forward(config, params, tokens, dropout_key=key)[0])
        losses[scan_layers] = [np.asarray(hidden(params, jax.random.key(seed))) for seed in (0, 1)]
    same(subject, "dropout under scan", losses[True], losses[False])
    assert not np.allclose(losses[False][0], losses[False][1]), f"{subject}: two dropout keys give the same"


@in_float64
def check_sharding(subject: Subject) -> None:
    """A mesh of 8 devices (data 2, fsdp 2, tensor 2) gives the loss and gradients of one, and no loop over positions
    talks to another device. Needs 8 devices."""
    from hybrid.params import declarations
    from hybrid.sharding import batch_sharding, make_mesh, on, param_shardings

    config = dataclasses.replace(subject.stack(1), d_model=16, n_heads=4)
    tokens = subject.tokens(batch=4)
    params = subject.init(config)
    wanted = jax.device_get(loss_and_gradients(config, tokens)(params))
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    laid_out = jax.device_put(params, param_shardings(mesh, declarations(config)))
    cut = [leaf for leaf in jax.tree.leaves(laid_out["layers"]) if not leaf.sharding.is_fully_replicated]
    assert cut, f"{subject}: no parameter of the sublayer is cut over the mesh"
    with on(mesh):
        run = loss_and_gradients(config, jax.device_put(tokens, batch_sharding(mesh))).lower(laid_out).compile()
        got = run(laid_out)
    same(subject, "sharded over 8 devices", jax.device_get(got), wanted)
    looped = [line for line in traffic(run.as_text()) if line.loops]
    assert not looped, f"{subject}: devices talk inside of loops: {looped}"


@in_float64
def check_sequence(subject: Subject) -> None:
    """Rows cut along their length (data 2, tensor 2, sequence 2) give the loss and gradients of one device, several
    documents in a row included where the kind takes them. Windows are made shorter than a shard. Needs 8 devices."""
    from hybrid.params import declarations
    from hybrid.sharding import batch_shardings, make_mesh, on, param_shardings

    config = dataclasses.replace(subject.stack(1), d_model=16, n_heads=4)
    group: Any = getattr(config, subject.kind.group, None)
    settable = {field.name for field in dataclasses.fields(group)} if group is not None else set()
    if "window" in settable and group.window > SEQUENCE // 4:
        shorter: Any = {subject.kind.group: dataclasses.replace(group, window=SEQUENCE // 4)}
        config = dataclasses.replace(config, **shorter)
    batch = {"tokens": subject.tokens(batch=2, length=SEQUENCE)}
    if subject.traits.packing == "exact":
        # A document that goes over the border of the shards, and one that begins there.
        rows = [np.searchsorted(begins, np.arange(SEQUENCE), side="right") for begins in ([3, 6], [4])]
        batch["segment_ids"] = jnp.asarray(np.stack(rows), jnp.int32)
    params = subject.init(config)
    wanted = jax.device_get(loss_and_gradients(config, **batch)(params))
    mesh = make_mesh(data=2, tensor=2, sequence=2)
    laid_out = jax.device_put(params, param_shardings(mesh, declarations(config)))
    with on(mesh):
        lying = jax.device_put(batch, batch_shardings(mesh, batch))
        got = loss_and_gradients(config, **lying)(laid_out)
    same(subject, "cut along the length over 8 devices", jax.device_get(got), wanted)
