"""Training of one run, from wherever it stands to its result.

What a run is at step t follows from its trial alone: parameters and moments (a checkpoint), random key = fold_in(root,
t), batch = data[t]. So a run that was cut off restores the newest checkpoint that verifies, cuts its metrics to it and
goes on; what it writes is the same to the last bit.

Order at a step: the row of training, the evaluation, the checkpoint, so that a checkpoint counts the rows up to it.
"""

from __future__ import annotations

import contextlib
import functools
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, Protocol

import jax
import numpy as np

from experiments import hosts
from experiments.checkpoint import Checkpoints, refuse_other
from experiments.config import Trial
from experiments.data.synthetic import TASKS
from experiments.derived import count
from experiments.failures import is_out_of_memory
from experiments.identity import digest, group_id, identity
from experiments.recorder import Recorder, Watch
from experiments.runs import RunFolder
from experiments.signals import Stop
from experiments.states import TrainState, host, live, saved, saved_shapes
from experiments.step import Program
from hybrid.accounting import parameters
from hybrid.losses import IGNORED
from hybrid.validation import plain

Outcome = Literal["done", "diverged", "stopped"]

SPLITS = ("validation", "test")


class Source(Protocol):
    """What training asks of its data (experiments.data.Data)."""

    @property
    def fingerprint(self) -> str: ...
    @property
    def token_bytes(self) -> np.ndarray: ...
    def batch(self, step: int) -> dict[str, Any]: ...
    def batches(self, start_step: int = 0) -> Any: ...
    def evaluation(self, split: Any) -> list[dict[str, Any]]: ...


def train(
    trial: Trial,
    run: RunFolder,
    programs: dict[str, Program],
    *,
    stop: Stop | None = None,
    watch: Watch | None = None,
    data: Source | None = None,
) -> Outcome:
    """Trains `trial` in its run folder, which the caller has claimed, and commits the result.

    programs: keeps the compiled steps of each group for the next runs of this process. stop: of a caller that notes
    signals itself. data: instead of what trial.data names. Raises ConfigError where checkpoints or data are not
    those of this trial.
    """
    if run.result is not None:
        return run.result["status"]
    with (
        Stop() if stop is None else contextlib.nullcontext(stop) as asked,
        begun(trial, run, programs, stop=asked, watch=watch, data=data) as training,
    ):
        return training.train()


@contextlib.contextmanager
def begun(
    trial: Trial,
    run: RunFolder,
    programs: dict[str, Program],
    *,
    stop: Stop,
    watch: Watch | None = None,
    data: Source | None = None,
    kind: type[Training] | None = None,
) -> Iterator[Any]:
    """A run from where it stands, its checkpoints open while the block runs. kind: instead of Training."""
    data = load(trial) if data is None else data
    record = run.record
    recorded = record["derived"].get("fingerprint") or data.fingerprint
    refuse_other({"fingerprint": recorded}, {"fingerprint": data.fingerprint}, run.path)
    group = group_id(trial, data.fingerprint)
    if group not in programs:
        programs[group] = Program(trial)
    if kind is None:
        program = programs[group]
        text = not trial.data.is_task  # whose held-out batches have the form of the training batches
        program.begin(program.evaluation(*held_out(trial, data, SPLITS[0]))[0][0] if text else data.batch(0))
    recorder = Recorder(trial, run, data.token_bytes, watch)

    def refused(step: int, reason: str) -> None:
        run.event("refused", step=step, reason=reason)

    together = hosts.Together(stop, trial.train.log_every)
    with Checkpoints(run.checkpoints, trial.checkpoint.keep if run.writes else None, refused) as checkpoints:
        training = (kind or Training)(trial, recorder, data, programs[group], checkpoints, together)
        recorder.flops_per_token = _completed(trial, run, 1 if kind is None else None)["derived"]["flops_per_token"]
        yield training


def _completed(trial: Trial, run: RunFolder, population: int | None) -> dict[str, Any]:
    """config.json with what is counted from the program (the step is being compiled all the while), and with how many
    others the run trains."""
    record = run.record
    before = json.dumps(record)
    if record["derived"].get("flops_per_token") is None:
        record["derived"].update(count(trial))
    if population is not None:
        record["population"] = population
    if run.writes and json.dumps(record) != before:
        run.create(record)
    return record


def load(trial: Trial) -> Source:
    """The data that trial.data names."""
    from experiments import data

    return data.load(
        trial.data,
        seed=trial.seed,
        evaluation_sequences=trial.evaluate.sequences,
        rows_together=trial.mesh.data * trial.mesh.fsdp,
    )


def answered(
    trial: Trial, program: Program, data: Any, split: str, params: Any, stopped: Callable[[], bool] = lambda: False
) -> dict[str, Any] | None:
    """The scores of a split or slice of a task; None where it was `stopped`.

    A slice that the model cannot read, or that takes more memory than there is, has no scores, and says why.
    """
    task, name = TASKS[trial.data.source], split.partition("/")[2]
    form = trial.data.slice(name) if name else None
    none: dict[str, Any] = dict.fromkeys(("loss", *task.names))
    if form is not None and (why := trial.too_long(form.seq_len)):
        return {**none, "reason": why}
    results = []
    try:
        for batch, _ in program.evaluation(*held_out(trial, data, split)):
            if stopped():
                return None
            results.append(jax.device_get(program.answer_step(params, batch)))
    except Exception as error:
        if form is None or not is_out_of_memory(str(error)):
            raise
        return {**none, "reason": "out of memory"}
    nats, said, labels = (np.concatenate(column)[: data.wanted(split)] for column in zip(*results, strict=True))
    scored = labels != IGNORED
    loss = float(nats[scored].sum(dtype=np.float64) / max(int(scored.sum()), 1))
    config = trial.data.task if form is None else form.task
    return {"loss": loss, **task.scores(config, said, labels)}


def held_out(trial: Trial, data: Source, split: str) -> tuple[str, Callable[[], Any]]:
    """(its name among all sets, what makes it) of the fixed batches of a split."""
    about = {"data": plain(trial.data), "sequences": trial.evaluate.sequences, "fingerprint": data.fingerprint}
    return f"{split} {digest(about)}", functools.partial(data.evaluation, split)


class Training:
    """A run in the midst of its training: its state, and all that is done between two steps."""

    def __init__(
        self,
        trial: Trial,
        recorder: Recorder,
        data: Source,
        program: Program,
        checkpoints: Checkpoints,
        stop: hosts.Together,
    ):
        self.trial, self.recorder, self.run, self.data = trial, recorder, recorder.run, data
        self.program, self.checkpoints, self.stop = program, checkpoints, stop
        self.identity = identity(trial, data.fingerprint)
        self.values = program.values(trial)
        self.behind: tuple[int, Callable[[], Mapping[str, Any]], np.ndarray | None] | None = None
        """The step that was not looked at yet: its number, what reads its metrics, its labels (None of a task)."""
        self.state, self.step = self._begin()
        self.saved = self.step
        """The step of the last checkpoint."""
        self.device_waits: Callable[[], bool] = lambda: False
        """Whether the device has done all that it was given."""

    def train(self) -> Outcome:
        self.recorder.open()
        result: dict[str, Any] | None = {"status": "failed"}
        try:
            result = self._train()
        finally:
            self.recorder.close(result)
        return "stopped" if result is None else result["status"]

    # ------------------------------------------------------------------------------------------------ from and to disk
    def _begin(self) -> tuple[TrainState, int]:
        model, program = self.trial.model, self.program
        rows = self.recorder.rows

        def check(about: Mapping[str, Any]) -> str:
            refuse_other(about["identity"], self.identity, self.run.path)
            there = self.recorder.count(about["step"])
            return "" if there == about["rows"] else f"metrics.jsonl has {there} of the {about['rows']} rows up to it"

        begun = bool(rows) or self.run.reached() > 0
        shapes = saved_shapes(model, program.shapes, program.mesh)
        found = self.checkpoints.newest(shapes, check) if self.run.writes else None
        step = found.step if found else 0
        self.run.cut(step)
        step = hosts.from_first(step)
        if not self.run.writes and step:
            found = self.checkpoints.newest(shapes, lambda about: "" if about["step"] == step else "another is taken")
        self.recorder.rows = self.run.rows()
        if found is None:
            state = program.init(self.values)
            self._note_compiled()
        else:
            state = live(model, program.shapes, program.shardings, found.tree)
            self.recorder.seconds_before = found.about["seconds"]
        if begun:
            self.run.event("resume", step=step)
        return state, step

    def _save(self) -> None:
        """Of the current state. A row is on disk before a checkpoint that counts it is begun."""
        step = int(jax.device_get(self.state.step))
        if step == self.saved:
            return
        begun = time.perf_counter()
        self.run.sync()
        about = {"identity": self.identity, "step": step, "rows": self.recorder.count(step)}
        about["seconds"] = round(self.recorder.seconds, 3)
        state = saved(host(self.state))
        if self.run.writes:
            self.checkpoints.save(step, state, about)
        self.saved = step
        seconds = time.perf_counter() - begun
        self.run.event("checkpoint", step=step, seconds=round(seconds, 4))
        self.recorder.skip(seconds)

    # ------------------------------------------------------------------------------------------------------- the steps
    @property
    def last(self) -> int:
        """The step after which nothing follows: train.steps, or where an evaluation reached train.stop_at."""
        steps, wanted = self.trial.train.steps, self.trial.train.stop_at
        if wanted is None:
            return steps
        name = "validation/accuracy"
        return next((row["step"] for row in self.recorder.rows if row.get(name, -1.0) >= wanted), steps)

    def _train(self) -> dict[str, Any] | None:
        """done.json's content, None where it was stopped."""
        return self.end(self.advance() and self.look())

    def end(self, finite: bool) -> dict[str, Any] | None:
        """Commits the result, or saves where the run was stopped before its last step. finite: all steps so far."""
        if not finite:
            return self._finish("diverged")
        if self.step < self.last or not self.score():
            self._save()
            self.checkpoints.wait()
            self.run.event("stopped", step=self.step)
            return None
        return self._finish("done")

    def advance(self) -> bool:
        """Steps until the last one, a wish to stop, or a loss that is not finite (False)."""
        if self.is_over():
            return True
        steps = self.trial.train.steps
        with self.data.batches(self.step) as batches:
            ready = self._next(batches)
            while self.step < self.last and not self.stop.asked:
                batch, labels = ready
                self.recorder.dispatched(self.device_waits)
                self.state, metrics = self.program.train_step(self.state, batch, self.values)
                self.device_waits = metrics["finite"].is_ready
                self.step += 1
                if self.step < steps:
                    ready = self._next(batches)  # while the device works
                if not self.took(functools.partial(jax.device_get, metrics), labels):
                    return False
        return True

    def _next(self, batches: Any) -> tuple[Any, np.ndarray | None]:
        with self.recorder.waiting_for_data():
            batch = next(batches)
        return self.program.put(batch), batch.get("labels")

    def is_over(self) -> bool:
        """Whether no step follows: all were done, or a stop came while what is due at this one was evaluated."""
        return self.step == self.last or not self.score()  # cut off between a step and its evaluation

    def took(self, metrics: Callable[[], Mapping[str, Any]], labels: np.ndarray | None) -> bool:
        """All that follows the dispatch of a step, `self.step`; False where it or the one before was not finite."""
        if not self.look():  # at the step before
            return False
        self.behind = (self.step, metrics, labels)
        self._note_compiled()
        save = self.step % self.trial.checkpoint.every == 0
        if self._is_due(self.step) or save:
            if not self.look():
                return False
            if self.score() and save:
                self._save()
        return True

    def look(self) -> bool:
        """Looks at the step that is behind; False where it was not finite."""
        if self.behind is None:
            return True
        (step, read, labels), self.behind = self.behind, None
        metrics = read()
        self.recorder.arrived()
        if not metrics["finite"]:
            self._save()  # of the state before that step
            self.step = step
            self.recorder.training(step, {**metrics, "loss": math.nan}, labels)
            return False
        if step % self.trial.train.log_every == 0 or step == self.trial.train.steps:
            self.recorder.training(step, metrics, labels)
        return True

    def _note_compiled(self) -> None:
        for made in self.program.news():
            self.run.event("compiled", **made.event())

    # -------------------------------------------------------------------------------------------------- the evaluation
    def _is_due(self, step: int) -> bool:
        return step > 0 and (step % self.trial.evaluate.every == 0 or step == self.trial.train.steps)

    def score(self) -> bool:
        """Evaluates what is due at this step and was not; False where it was asked to stop in the midst of it."""
        begun = time.perf_counter()
        for split in self._splits() if self._is_due(self.step) else ():
            if not self.recorder.has(self.step, f"{split}/loss") and not self._evaluated(split):
                return False
        self.recorder.skip(time.perf_counter() - begun)
        return True

    def _splits(self) -> Iterator[str]:
        """What is scored at this step; whether it is the last one is known after the validation rows."""
        yield SPLITS[0]
        if self.step == self.last:
            yield from SPLITS[1:]
            yield from (f"slices/{each.name}" for each in self.trial.data.slices)

    def _evaluated(self, split: str) -> bool:
        """Writes the scores of a split; False where it was asked to stop in the midst of it."""
        if self.trial.data.is_task:
            scores = answered(self.trial, self.program, self.data, split, self.state.params, lambda: self.stop.asked)
            self._note_compiled()
            if scores is None:
                return False
            self.recorder.answers(self.step, split, scores)
            return True
        fixed = self.program.evaluation(*held_out(self.trial, self.data, split))
        results = []
        for batch, _ in fixed:
            if self.stop.asked:
                return False
            results.append(self.program.eval_step(self.state.params, batch))
        self._note_compiled()
        nats, scored = zip(*jax.device_get(results), strict=True)
        size = sum(self.recorder.amount(labels)[1] for _, labels in fixed if labels is not None)
        self.recorder.scores(self.step, split, sum(map(float, nats)), sum(map(int, scored)), size)
        return True

    def _finish(self, status: Literal["done", "diverged"]) -> dict[str, Any]:
        """Commits the result; a model whose scores are not finite has diverged too."""
        result = self.recorder.result(status, self.step, parameters(self.trial.model).total)
        scores = [result[split]["loss"] for split in SPLITS]
        if status == "done" and not all(score is not None and math.isfinite(score) for score in scores):
            result["status"] = "diverged"
        self._save()
        self.checkpoints.wait()
        self.run.finish(result)
        self.run.event(result["status"], step=self.step)
        return result
