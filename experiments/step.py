"""The compiled steps of training. One Program serves all trials of a group: what they differ in is traced.

    program = Program(trial)
    state = program.init(values)
    state, metrics = program.train_step(state, batch, values)      # state is donated: use the new one
    nats, scored = program.eval_step(state.params, batch)
    nats, answers, labels = program.answer_step(state.params, rows)    # of a synthetic task

A batch has tokens and labels (B, L), label -1 = not scored, or labels (B, K) with label_positions (B, K). It may have
segment_ids (B, L) and padding (B, L); that of a model with an encoder has decoder_tokens (B, T), to which labels then
belong, and may have decoder_padding (B, T). That of a synthetic task has the numbers of its rows alone, and the step
makes them (experiments/data/synthetic/rows.py). All arrays lie on the mesh of the trial.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from experiments import environment, hosts
from experiments.answers import answers, pooled
from experiments.compiling import Compilation, compiled
from experiments.config import Trial
from experiments.data.synthetic import TASKS
from experiments.data.synthetic.rows import made
from experiments.identity import group_id
from experiments.optimizer import Values, adamw, global_norm, learning_rate, precise, values_of
from experiments.states import TrainState, like_params
from hybrid.losses import IGNORED, token_losses
from hybrid.model import forward
from hybrid.params import declarations, init
from hybrid.sharding import batch_shardings, constrain, make_mesh, on, param_shardings, replicated
from hybrid.sublayers import Aux
from hybrid.updates import updated
from hybrid.validation import plain

Tree = Any
Batch = Mapping[str, Any]

ONCE = {"xla_backend_optimization_level": 0}
"""Options for a program that runs once: initial values take longer to compile well than to calculate (5 s to 2 s)."""


KEPT_SETS = 4
"""Sets of evaluation that stay on the device."""


class Form(NamedTuple):
    """What a compiled program is asked for: a function and the forms of what it takes."""

    name: str
    function: Callable
    arguments: tuple
    """Arrays or jax.ShapeDtypeStruct."""
    about: tuple
    """What the arguments' forms are, besides the group."""
    out: Any
    """Shardings."""
    donate: tuple[int, ...] = ()
    options: Mapping[str, Any] | None = None

    @property
    def key(self) -> tuple[str, tuple]:
        return self.name, self.about


class Program:
    """The compiled functions of a group of trials. Compiles at first use, or ahead of it (`begin`).

    `made` lists what was compiled, `seconds` is how long was waited for it.
    """

    def __init__(self, trial: Trial):
        self.trial = trial
        self.model = trial.model
        self.mesh = make_mesh(**plain(trial.mesh))
        self.declarations = declarations(trial.model)
        self.optimizer = adamw(trial.optimizer, self.declarations)
        self.group = group_id(trial, None)
        self.made: list[Compilation] = []
        self._told = 0
        self.seconds = 0.0
        self._compiled: dict[Any, Any] = {}
        self._ahead: dict[Any, Future[tuple[Any, Compilation]]] = {}
        self._fixed: dict[str, list[tuple[Tree, Any]]] = {}
        values = values_of(trial)
        with on(self.mesh):
            self.shapes: TrainState = jax.eval_shape(self._init, values)
        self._values = jax.eval_shape(lambda: values)
        params = param_shardings(self.mesh, self.declarations)
        self.shardings: TrainState = like_params(self.shapes, params, replicated(self.mesh))

    # ------------------------------------------------------------------------------------------------ onto the mesh
    def values(self, trial: Trial) -> Values:
        """The traced values of a trial of this group."""
        return hosts.onto(values_of(trial), replicated(self.mesh))

    def put(self, batch: Batch) -> Tree:
        """A batch of host arrays, cut along the mesh."""
        return hosts.onto(dict(batch), batch_shardings(self.mesh, batch))

    def evaluation(self, name: str, make: Callable[[], Sequence[Batch]]) -> list[tuple[Tree, Any]]:
        """(batch on the mesh, its labels on the host, None of a task) of the fixed set `name`, which trials may share:
        put once."""
        if name not in self._fixed:
            while len(self._fixed) >= KEPT_SETS:
                self._fixed.pop(next(iter(self._fixed)))
            self._fixed[name] = [(self.put(batch), batch.get("labels")) for batch in make()]
        return self._fixed[name]

    # ---------------------------------------------------------------------------------------------------- the steps
    def init(self, values: Values) -> TrainState:
        """The state before the first step."""
        return self._run(Form("init", self._init, (values,), (), self.shardings, options=ONCE))

    def train_step(self, state: TrainState, batch: Tree, values: Values) -> tuple[TrainState, Tree]:
        """(the next state, metrics): scalars on the device, and the state that was given is used up.

        Where loss or gradient is not finite, the state stays as it was and is marked so.
        """
        return self._run(self._training((state, batch, values)))

    def begin(self, batch: Batch) -> None:
        """Begins to compile the training step for batches like this one, while the caller does other things."""
        whole = replicated(self.mesh)
        state = jax.tree.map(_lying, self.shapes, self.shardings)
        given = jax.tree.map(_lying, dict(batch), batch_shardings(self.mesh, batch))
        values = jax.tree.map(lambda leaf: _lying(leaf, whole), self._values)
        form = self._training((state, given, values))
        if form.key not in self._compiled and form.key not in self._ahead and jax.process_count() == 1:
            wide = jnp.result_type(float) == jnp.float64  # in this thread
            thread = ThreadPoolExecutor(1, thread_name_prefix="compiling")

            def compile_it() -> tuple[Any, Compilation]:
                with jax.enable_x64(wide):
                    return self._compile(form)

            self._ahead[form.key] = thread.submit(compile_it)
            thread.shutdown(wait=False)

    def _training(self, arguments: tuple) -> Form:
        outputs = (self.shardings, replicated(self.mesh))
        return Form("train", self._train, arguments, _form(arguments[1]), outputs, donate=(0,))

    def eval_step(self, params: Tree, batch: Tree) -> tuple[Any, Any]:
        """(sum of nats, scored positions) of a batch, without dropout."""
        whole = replicated(self.mesh)
        return self._run(Form("eval", self._evaluate, (params, batch), _form(batch), (whole, whole)))

    def answer_step(self, params: Tree, rows: Tree) -> tuple[Any, Any, Any]:
        """(nats, answers, labels), each (B, K), of numbered rows of a task; label -1 = not scored. No dropout."""
        whole = replicated(self.mesh)
        return self._run(Form("answer", self._answer, (params, rows), _form(rows), (whole, whole, whole)))

    # -------------------------------------------------------------------------------------------- members side by side
    def train_population(self, states: TrainState, batches: Tree, values: Values) -> tuple[TrainState, Tree]:
        """`train_step` of as many members as the leading axis of all three says; the states are used up."""
        return self._run(self._side_by_side(states, batches, values))

    def empty(self, width: int) -> TrainState:
        """A stack of states for so many members, all zero."""
        return jax.tree.map(lambda leaf: jnp.zeros((width, *leaf.shape), leaf.dtype), self.shapes)

    def placed(self, states: TrainState, row: int, state: TrainState) -> TrainState:
        """The stack with another row; the old one is used up."""
        return _placed(states, jnp.asarray(row, jnp.int32), state)

    def row(self, states: TrainState, row: int) -> TrainState:
        return _row(states, jnp.asarray(row, jnp.int32))

    def put_population(self, batches: Batch) -> Tree:
        return jax.device_put(dict(batches), replicated(self.mesh))

    def bytes_of_population(self, batch: Batch, width: int) -> int | None:
        """Memory that the compiled step of `width` members takes, None where the platform does not say."""
        stacked = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct((width, *leaf.shape), leaf.dtype),
            (self.shapes, dict(batch), self._values),
        )
        memory = self._executable(self._side_by_side(*stacked)).memory_analysis()
        if memory is None:
            return None
        whole = memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
        return whole - memory.alias_size_in_bytes

    def _side_by_side(self, states: Tree, batches: Tree, values: Tree) -> Form:
        width, whole = states.step.shape[0], replicated(self.mesh)
        name = f"train x{width}"
        return Form(name, jax.vmap(self._train), (states, batches, values), _form(batches), whole, donate=(0,))

    # ------------------------------------------------------------------------------------------------------ executables
    @property
    def compilations(self) -> int:
        return len(self.made)

    def news(self) -> list[Compilation]:
        """What was compiled since this was asked last: by whichever run, each is told once."""
        told, self._told = self._told, len(self.made)
        return self.made[told:]

    def compiled(self, name: str) -> Any:
        """The executable of "init", "train" or "eval", once it has run: for its text and its memory."""
        return next(program for (kind, _), program in self._compiled.items() if kind == name)

    def planned(self, batch: Mapping[str, tuple[int, ...]], options: Any = None) -> Any:
        """The executable of a training step for int32 arrays of these shapes; no array is made, so that a mesh may be
        asked about which no machine could hold. options: of the compiler."""

        def lying(shape: Any, sharding: Any) -> Any:
            return jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding)

        whole = replicated(self.mesh)
        arrays = {name: jax.ShapeDtypeStruct(shape, jnp.int32) for name, shape in batch.items()}
        state = jax.tree.map(lying, self.shapes, self.shardings)
        values = jax.tree.map(lambda leaf: lying(leaf, whole), jax.eval_shape(lambda: values_of(self.trial)))
        with on(self.mesh):
            jitted = jax.jit(self._train, out_shardings=(self.shardings, whole), donate_argnums=(0,))
            given = jax.tree.map(lying, arrays, batch_shardings(self.mesh, arrays))
            return jitted.lower(state, given, values).compile(compiler_options=options)

    def _run(self, form: Form) -> Any:
        return self._executable(form)(*form.arguments)

    def _executable(self, form: Form) -> Any:
        """What was compiled for this form, made when it is first needed."""
        if form.key not in self._compiled:
            begun = time.perf_counter()
            ahead = self._ahead.pop(form.key, None)
            self._compiled[form.key], made = ahead.result() if ahead else self._compile(form)
            memory = self._compiled[form.key].memory_analysis()
            if memory is not None and memory.temp_size_in_bytes > environment.LARGE:
                environment.give_back()
            self.made.append(made)
            self.seconds += time.perf_counter() - begun
        return self._compiled[form.key]

    def _compile(self, form: Form) -> tuple[Any, Compilation]:
        def lower() -> Any:
            with on(self.mesh):
                return jax.jit(form.function, out_shardings=form.out, donate_argnums=form.donate).lower(*form.arguments)

        return compiled(form.name, [self.group, form.about], lower, form.options)

    # ------------------------------------------------------------------------------------------------ what is traced
    def _init(self, values: Values) -> TrainState:
        params = init(self.model, values.key)
        step = jnp.zeros((), jnp.int32)
        return TrainState(params=params, optimizer=self.optimizer.init(params), step=step, finite=jnp.ones((), bool))

    def _evaluate(self, params: Tree, batch: Batch) -> tuple[Any, Any]:
        hidden, _ = forward(self.model, params, batch["tokens"], **_context(batch))
        nats, scored = token_losses(self.model, params, hidden, batch["labels"], batch.get("label_positions"))
        return nats.sum(), scored.sum()

    def _answer(self, params: Tree, rows: Batch) -> tuple[Any, Any, Any]:
        batch = self._made(rows, training=False)
        hidden, _ = forward(self.model, params, batch["tokens"], **_context(batch))
        given = self._read_out(hidden), batch["labels"], batch.get("label_positions")
        return *answers(self.model, params, *given), batch["labels"]

    def _made(self, batch: Batch, training: bool) -> Batch:
        """The batch, its rows made where it only numbers them."""
        whole = made(self.trial.data, batch, training)
        if whole is batch:
            return batch
        return {name: constrain(array, "batch", "length") for name, array in whole.items()}

    def _read_out(self, hidden: Any) -> Any:
        """Hidden states that answers are read from."""
        task = TASKS.get(self.trial.data.source)
        return hidden if task is None or task.readout == "positions" else pooled(hidden)

    def _train(self, state: TrainState, batch: Batch, values: Values) -> tuple[TrainState, Tree]:
        batch = self._made(batch, training=True)
        key = jax.random.fold_in(values.key, state.step)
        loss, aux, gradients = self._gradients(state.params, batch, key, values.dropout)
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
            "learning_rate": learning_rate(self.trial.optimizer, values, state.step),
            "finite": finite,
            **{f"aux/{name}": _over_all(name, value) for name, value in aux.metrics.items()},
        }
        return kept, metrics

    def _gradients(self, params: Tree, batch: Batch, key: Any, dropout: Any) -> tuple[Any, Aux, Tree]:
        """(mean nats of the scored positions, what the sublayers report, gradient) of the objective of a whole batch.

        The batch goes through in `accumulate` parts; each adds its nats over the number scored in the whole batch, so
        that the gradient is that of the whole however the labels are spread. Losses of sublayers are averaged.
        """
        parts = self.trial.optimizer.accumulate
        total = jnp.maximum((batch["labels"] != IGNORED).sum(), 1)

        def objective(params: Tree, part: Batch, key: Any) -> tuple[Any, tuple[Any, Aux]]:
            given = {**_context(part), "dropout_key": key, "dropout_rate": dropout}
            hidden, aux = forward(self.model, params, part["tokens"], **given)
            hidden = self._read_out(hidden)
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


@functools.partial(jax.jit, donate_argnums=0)
def _placed(states: Tree, row: Any, state: Tree) -> Tree:
    return jax.tree.map(lambda stack, leaf: stack.at[row].set(leaf), states, state)


@jax.jit
def _row(states: Tree, row: Any) -> Tree:
    return jax.tree.map(lambda stack: stack[row], states)


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


def _lying(shape: Any, sharding: Any) -> Any:
    return jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding)
