"""The compiled steps of training. One Program serves all trials of a group: what they differ in is traced.

    program = Program(trial)
    state = program.init(values)
    state, metrics = program.train_step(state, batch, values)      # state is donated: use the new one
    nats, scored = program.eval_step(state.params, batch)

A batch has tokens and labels (B, L), label -1 = not scored, or labels (B, K) with label_positions (B, K). It may have
segment_ids (B, L) and padding (B, L); that of a model with an encoder has decoder_tokens (B, T), to which labels then
belong, and may have decoder_padding (B, T). All arrays lie on the mesh of the trial.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from experiments.config import Trial
from experiments.optimizer import Values, adamw, global_norm, learning_rate, precise, values_of
from experiments.states import TrainState, like_params
from hybrid.losses import IGNORED, token_losses
from hybrid.model import forward
from hybrid.params import declarations, init
from hybrid.sharding import batch_sharding, make_mesh, on, param_shardings, replicated
from hybrid.sublayers import Aux
from hybrid.updates import updated
from hybrid.validation import plain

Tree = Any
Batch = Mapping[str, Any]

ONCE = {"xla_backend_optimization_level": 0}
"""Options for a program that runs once: initial values take longer to compile well than to calculate (5 s to 2 s)."""


class Program:
    """The compiled functions of a group of trials. Compiles at first use; `seconds` is what that took so far."""

    def __init__(self, trial: Trial):
        self.trial = trial
        self.model = trial.model
        self.mesh = make_mesh(**plain(trial.mesh))
        self.declarations = declarations(trial.model)
        self.optimizer = adamw(trial.optimizer, self.declarations, trial.train.steps)
        self.compilations = 0
        self.seconds = 0.0
        self._compiled: dict[Any, Any] = {}
        self._fixed: dict[str, list[tuple[Tree, Any]]] = {}
        with on(self.mesh):
            self.shapes: TrainState = jax.eval_shape(self._init, values_of(trial))
        params = param_shardings(self.mesh, self.declarations)
        self.shardings: TrainState = like_params(self.shapes, params, replicated(self.mesh))

    # ------------------------------------------------------------------------------------------------ onto the mesh
    def values(self, trial: Trial) -> Values:
        """The traced values of a trial of this group."""
        return jax.device_put(values_of(trial), replicated(self.mesh))

    def put(self, batch: Batch) -> Tree:
        """A batch of host arrays, cut along the mesh."""
        return jax.device_put(dict(batch), batch_sharding(self.mesh))

    def evaluation(self, split: str, make: Callable[[], Sequence[Batch]]) -> list[tuple[Tree, Any]]:
        """(batch on the mesh, its labels on the host) of a fixed set, the same for all trials of a group: put once."""
        if split not in self._fixed:
            self._fixed[split] = [(self.put(batch), batch["labels"]) for batch in make()]
        return self._fixed[split]

    # ---------------------------------------------------------------------------------------------------- the steps
    def init(self, values: Values) -> TrainState:
        """The state before the first step."""
        return self._run("init", (), self._init, (values,), out=self.shardings, options=ONCE)

    def train_step(self, state: TrainState, batch: Tree, values: Values) -> tuple[TrainState, Tree]:
        """(the next state, metrics): scalars on the device, and the state that was given is used up.

        Where loss or gradient is not finite, the state stays as it was and is marked so.
        """
        outputs = (self.shardings, replicated(self.mesh))
        return self._run("train", _form(batch), self._train, (state, batch, values), out=outputs, donate=(0,))

    def eval_step(self, params: Tree, batch: Tree) -> tuple[Any, Any]:
        """(sum of nats, scored positions) of a batch, without dropout."""
        whole = replicated(self.mesh)
        return self._run("eval", _form(batch), self._evaluate, (params, batch), out=(whole, whole))

    def compiled(self, name: str) -> Any:
        """The executable of "init", "train" or "eval", once it has run: for its text and its memory."""
        return next(program for (kind, _), program in self._compiled.items() if kind == name)

    def _run(
        self,
        name: str,
        form: Any,
        function: Callable,
        arguments: tuple,
        *,
        out: Any,
        donate: tuple[int, ...] = (),
        options: Any = None,
    ) -> Any:
        """Calls the executable for batches of this form, made when it is first needed."""
        program = self._compiled.get((name, form))
        if program is None:
            begun = time.perf_counter()
            with on(self.mesh):
                jitted = jax.jit(function, out_shardings=out, donate_argnums=donate)
                program = self._compiled[name, form] = jitted.lower(*arguments).compile(compiler_options=options)
            self.compilations += 1
            self.seconds += time.perf_counter() - begun
        return program(*arguments)

    # ------------------------------------------------------------------------------------------------ what is traced
    def _init(self, values: Values) -> TrainState:
        params = init(self.model, values.key)
        step = jnp.zeros((), jnp.int32)
        return TrainState(params=params, optimizer=self.optimizer.init(params), step=step, finite=jnp.ones((), bool))

    def _evaluate(self, params: Tree, batch: Batch) -> tuple[Any, Any]:
        hidden, _ = forward(self.model, params, batch["tokens"], **_context(batch))
        nats, scored = token_losses(self.model, params, hidden, batch["labels"], batch.get("label_positions"))
        return nats.sum(), scored.sum()

    def _train(self, state: TrainState, batch: Batch, values: Values) -> tuple[TrainState, Tree]:
        key = jax.random.fold_in(values.key, state.step)
        loss, aux, gradients = self._gradients(state.params, batch, key)
        gradients = jax.lax.with_sharding_constraint(gradients, self.shardings.params)
        norm = global_norm(gradients)
        updates, moments = self.optimizer.update(
            gradients, state.optimizer, state.params, values=values, step=state.step, norm=norm
        )
        params = updated(self.model, optax.apply_updates(state.params, updates), aux.updates)
        finite = state.finite & jnp.isfinite(loss) & jnp.isfinite(norm)
        after = TrainState(params=params, optimizer=moments, step=state.step + 1, finite=finite)
        kept = jax.tree.map(
            lambda new, old: jnp.where(finite, new, old), after, dataclasses.replace(state, finite=finite)
        )
        metrics = {
            "loss": loss,
            "gradient_norm": norm,
            "update_ratio": global_norm(updates) / global_norm(state.params),
            "learning_rate": learning_rate(self.trial.optimizer, values, state.step, self.trial.train.steps),
            "finite": finite,
            **{f"aux/{name}": _over_all(name, value) for name, value in aux.metrics.items()},
        }
        return kept, metrics

    def _gradients(self, params: Tree, batch: Batch, key: Any) -> tuple[Any, Aux, Tree]:
        """(mean nats of the scored positions, what the sublayers report, gradient) of the objective of a whole batch.

        The batch goes through in `accumulate` parts; each adds its nats over the number scored in the whole batch, so
        that the gradient is that of the whole however the labels are spread. Losses of sublayers are averaged.
        """
        parts = self.trial.optimizer.accumulate
        total = jnp.maximum((batch["labels"] != IGNORED).sum(), 1)

        def objective(params: Tree, part: Batch, key: Any) -> tuple[Any, tuple[Any, Aux]]:
            hidden, aux = forward(self.model, params, part["tokens"], dropout_key=key, **_context(part))
            nats, _ = token_losses(self.model, params, hidden, part["labels"], part.get("label_positions"))
            loss = nats.sum() / total
            return loss + sum(aux.losses.values()) / parts, (loss, aux)

        derive = jax.grad(objective, has_aux=True)
        if parts == 1:
            gradients, (loss, aux) = derive(params, batch, key)
            return loss, aux, gradients

        def add(carry: tuple[Any, Tree], inputs: tuple[Batch, Any]) -> tuple[tuple[Any, Tree], Aux]:
            part, index = inputs
            gradients, (loss, aux) = derive(params, part, jax.random.fold_in(key, index))
            return (carry[0] + loss, jax.tree.map(jnp.add, carry[1], precise(gradients))), aux

        nothing = jax.tree.map(jnp.zeros_like, precise(params))
        start = (jnp.zeros((), jax.tree.leaves(nothing)[0].dtype), nothing)
        (loss, gradients), auxes = jax.lax.scan(add, start, (_parts(batch, parts), jnp.arange(parts)))
        whole = jax.tree.map(lambda x: x.mean(0), auxes)
        metrics = {name: _over_all(name, value, axis=0) for name, value in auxes.metrics.items()}
        return loss, dataclasses.replace(whole, metrics=metrics), gradients


CONTEXT = ("decoder_tokens", "segment_ids", "positions", "padding", "decoder_padding", "token_types")
"""Arrays of a batch that `forward` takes by name."""


def _context(batch: Batch) -> dict[str, Any]:
    return {name: batch[name] for name in CONTEXT if name in batch}


def _parts(batch: Batch, parts: int) -> Tree:
    """(B, ...) -> (parts, B / parts, ...), row i · parts + j in part j: no row leaves its device."""
    return {
        name: jnp.swapaxes(array.reshape(array.shape[0] // parts, parts, *array.shape[1:]), 0, 1)
        for name, array in batch.items()
    }


def _over_all(name: str, values: Any, axis: int | None = None) -> Any:
    """A metric over layers, or over the parts of a batch: the greatest of those called worst_..., else the mean."""
    return values.max(axis) if name.startswith("worst_") else values.mean(axis)


def _form(batch: Batch) -> tuple:
    """What a compiled step depends on besides its group."""
    return tuple((name, array.shape, str(array.dtype)) for name, array in sorted(batch.items()))
