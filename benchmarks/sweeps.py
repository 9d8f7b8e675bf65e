"""What a study costs beside its steps: starts, the loop, workers, and a column of the recall grid beside torch."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import machine, peers, peers_sweeps
from benchmarks.history import ROOT
from benchmarks.measure import paired, spread
from benchmarks.rows import Row, faster, of_limit
from experiments.environment import threads

ENVIRONMENT: dict[str, str] = {"NPROC": "2"}

QUICKSTART = "configs/quickstart.py"
ARM = "--config.model.count=1"
"""The arm of the quick start with three Mamba layers and one of attention."""

MANY = 10**6


def _source() -> str:
    """The quick start's text where it was fetched, else one that is always there."""
    from experiments import data
    from experiments.config import trial_from
    from experiments.configfile import ConfigFile
    from hybrid.validation import ConfigError

    for name in ("shakespeare", "stdlib"):
        trial = trial_from(ConfigFile(ROOT / QUICKSTART).values([("data.source", name)]))
        with contextlib.suppress(ConfigError):
            data.prepare(trial.data, lambda text: None)
            return name
    raise RuntimeError("no text to train on")


# --- start ------------------------------------------------------------------------------------------------------------


def start() -> Iterator[Row]:
    """From the command to the first step of a quick-start trial, with an empty cache and with a full one."""
    source = _source()
    with tempfile.TemporaryDirectory() as folder:
        cache, bars = Path(folder) / "cache", {"an empty": "<= 12", "a full": "<= 6"}
        for name, bar in bars.items():
            seconds = []
            for n in range(3):
                if name == "an empty":
                    shutil.rmtree(cache, ignore_errors=True)
                run = Path(folder) / f"{name} {n}"
                seconds.append(_first_step(run, cache, source))
            figure = spread(seconds)
            work = f"command to first step of a quick-start trial, {name} cache"
            yield Row(work, "", figure.median, "s", bar, figure.low, figure.high)


def _first_step(run: Path, cache: Path, source: str) -> float:
    """Seconds until the metrics of the first step are there."""
    few = ("--config.train.steps=2", "--config.optimizer.warmup_steps=1", "--config.tracking.mode=off")
    command = [sys.executable, "-m", "experiments.train", f"--config={QUICKSTART}", f"--workdir={run}", ARM, *few]
    begun = time.time()
    _run([*command, f"--config.data.source={source}"], HYBRID_CACHE=str(cache))
    return next(event["time"] for event in _events(run) if event["event"] == "first_step") - begun


def _run(command: list[str], **environment: str) -> str:
    variables = {**os.environ, **environment}
    # those of this process would win over what the command sets by itself
    for name in ("JAX_COMPILATION_CACHE_DIR", "XLA_FLAGS"):
        variables.pop(name, None)
    done = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, timeout=600, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stdout}\n{done.stderr}")
    return done.stdout


def _events(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]


# --- the loop ---------------------------------------------------------------------------------------------------------


class Until:
    """A wish to stop that comes of itself after a number of steps."""

    def __init__(self) -> None:
        self.training: Any = None
        self.step = 0

    @property
    def asked(self) -> bool:
        return self.training.step >= self.step


def loop() -> Iterator[Row]:
    """The loop of training with all that it does between two steps, over the compiled steps alone."""
    import jax

    from experiments.loop import begun

    trial = _trial()
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        run, until = _run_folder(trial, Path(folder) / "run"), Until()
        stack.enter_context(run.claim())
        training = until.training = stack.enter_context(begun(trial, run, {}, stop=until))  # type: ignore[arg-type]
        program, values = training.program, training.values
        batches = [program.put(training.data.batch(step)) for step in range(8)]
        state = program.init(values)
        steps = 40

        def looped() -> None:
            until.step = training.step + steps
            assert training.advance()
            jax.block_until_ready(training.state.step)

        def bare() -> None:
            nonlocal state
            for step in range(steps):
                state, metrics = program.train_step(state, batches[step % 8], values)
            jax.block_until_ready(metrics)

        times = paired({"bare": bare, "loop": looped}, rounds=5)
        ratio = times["bare"].faster_than(times["loop"])
        percent = [100 * (1 / value - 1) for value in (ratio.median, ratio.high, ratio.low)]
        work = f"the loop over its steps alone, quick-start arm, rounds of {steps} steps"
        clocks: dict[str, Any] = {"ours": times["loop"].ms(), "theirs": times["bare"].ms()}
        yield Row(work, "the compiled step", percent[0], "% more", "<= 3", percent[1], percent[2], **clocks)
        speeds = [event for event in run.events() if event["event"] == "speed"]
        for name, what in (("data_wait_share", "waited for data"), ("overhead_share", "left the device waiting")):
            shares = spread([100 * event[name] for event in speeds])
            work = f"share of its time that the loop {what}, as logged"
            yield Row(work, "", shares.median, "%", "<= 3", shares.low, shares.high)


def _trial() -> Any:
    """An arm of the quick start that neither evaluates nor saves while it is timed."""
    from experiments.config import trial_from
    from experiments.configfile import ConfigFile

    rare = {"train.steps": MANY, "evaluate.every": MANY, "checkpoint.every": MANY, "model.count": 1}
    given = {**rare, "data.source": _source(), "tracking.mode": "off"}
    return trial_from(ConfigFile(ROOT / QUICKSTART).values(list(given.items())))


def _run_folder(trial: Any, folder: Path) -> Any:
    from experiments.identity import run_id, trial_plain
    from experiments.runs import RunFolder

    about = {"id": run_id(trial, None), "arm": trial.arm, "study": "benchmark", "trial": trial_plain(trial)}
    derived = {"fingerprint": None, "flops_per_token": 1}
    return RunFolder(folder).create({**about, "derived": derived, "versions": {}})


# --- workers ----------------------------------------------------------------------------------------------------------


def workers() -> Iterator[Row]:
    """A study of two arms at two rates by one single-threaded worker and by two, each from an empty cache."""
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "study.py"
        config.write_text(_study((ROOT / QUICKSTART).read_text(), steps=450))
        seconds = {}
        for count in (1, 2):
            command = [sys.executable, "-m", "experiments.sweep", f"--config={config}", f"--workdir={folder}/{count}"]
            begun = time.perf_counter()
            given = {"HYBRID_CACHE": f"{folder}/cache {count}", "NPROC": str(count)}
            _run([*command, f"--workers={count}", "--report=false", "--stage=tune"], **given)
            seconds[count] = time.perf_counter() - begun
        clocks: dict[str, Any] = {"ours": _clock(seconds[2]), "theirs": _clock(seconds[1])}
        work = "a study of 2 arms at 2 rates, 450 steps, empty cache: two workers of one thread"
        note = "one round; the clock's time alone"
        yield Row(work, "one worker of one thread", seconds[1] / seconds[2], "x as fast", ">= 1.7", **clocks, note=note)


def _clock(seconds: float) -> dict[str, float]:
    """Milliseconds of processes of their own, whose threads are not looked at."""
    return dict.fromkeys(("wall", "cpu", "busiest"), 1e3 * seconds)


def _study(quickstart: str, steps: int) -> str:
    """The quick start with two arms, few steps, one seed."""
    changed = quickstart[: quickstart.index("def sweep()")]
    changed = changed.replace(
        '"train": {"steps": 400}', f'"train": {{"steps": {steps}}}, "tracking": {{"mode": "off"}}'
    )
    changed = changed.replace('"every": 100', f'"every": {steps}').replace('"seeds": 3', '"seeds": 1')
    changed = changed.replace('"baseline": "attention"', '"baseline": ""').replace('"shakespeare"', repr(_source()))
    return changed + (
        "def sweep():\n"
        '    arms = chain(*[point({"arm": name, "model.base": name}) for name in "MH"])\n'
        '    return product(arms, axis("optimizer.learning_rate", [1e-3, 3e-3]))\n'
    )


# --- a column of the recall grid --------------------------------------------------------------------------------------

CELL = "recall, L 64, 4 pairs, d 64, 2 layers, vocabulary 8,192, batch 64"
PUBLISHED = (
    "zoology itself cannot be installed here: its model and step in torch, eager; its own step was measured at 467 to"
    " 692 ms on two cores, with what its code does besides"
)
ALONE = (
    "as people run it: in the process of the row above, glibc keeps freed memory because our commands ask it to, which"
    " spares torch's step the mapping of its arrays too"
)
STEPS = 800
"""Of each of the four rates."""

THEIRS = 10
"""Steps of each rate that theirs takes; the others would cost the median of these."""

COLUMN = (
    "ours: experiments.sweep with its two workers of one thread and all that it writes; theirs: one process of two"
    f" threads, start and {THEIRS} steps a rate, and the others at the median of these; the clock's time alone"
)


def recall() -> Iterator[Row]:
    """The training step, beside torch's in turns and alone, and a column of four learning rates."""
    if not peers.there():
        return
    rates = len(peers_sweeps.RATES)
    for name, symbol in {"attention": "A", "hyena": "H"}.items():
        work, against = f"training step, {name}: {CELL}", f"dense {name} in torch, eager, {threads()} threads"
        times = paired({"ours": _recall_step(symbol), "theirs": peers_sweeps.stepper(name)}, rounds=11, warm=2)
        yield faster(work, against, times["ours"], times["theirs"], bar=">= 10", note=PUBLISHED)
        begun, said = _timed([sys.executable, "-m", "benchmarks.peers_sweeps", name, str(THEIRS)])
        a_step = spread(json.loads(said))
        alone: dict[str, Any] = {"ours": times["ours"].ms(), "theirs": _clock(a_step.median)}
        mine = times["ours"].ms()["wall"] / 1e3
        yield Row(
            work, f"{against}, in a process of its own", a_step.median / mine, "x as fast", ">= 10",
            a_step.low / mine, a_step.high / mine, **alone, note=ALONE,
        )  # fmt: skip
        ours = _column(symbol)
        theirs = begun + rates * (STEPS - THEIRS) * a_step.median
        clocks: dict[str, Any] = {"ours": _clock(ours), "theirs": _clock(theirs)}
        work = f"{rates} rates of {STEPS} steps, with start and compilation from an empty cache, {name}: {CELL}"
        yield Row(
            work, f"{against}, in a process of its own", theirs / ours, "x as fast", ">= 10", **clocks, note=COLUMN
        )


def products() -> Iterator[Row]:
    """What the steps of the recall cell are made of, beside the rate of large products."""
    import jax
    import jax.numpy as jnp

    batch, length, width = peers_sweeps.BATCH, peers_sweeps.LENGTH, peers_sweeps.WIDTH
    rows, matrix = jnp.ones((batch * length, width)), jnp.ones((width, width))
    queries = jnp.ones((batch, length, width))
    sizes = f"{length} x {width} by {width} x {length}"
    shapes: dict[str, tuple[Any, Any, str]] = {
        f"a product of {batch * length} x {width} by {width} x {width}: a projection": (rows, matrix, "rd,de->re"),
        f"{batch} products of {sizes}: the scores": (queries, queries, "bqd,bkd->bqk"),
    }
    works = {}
    for work, (left, right, product) in shapes.items():
        program = jax.jit(lambda x, y, product=product: jnp.einsum(product, x, y)).lower(left, right).compile()
        works[work] = lambda program=program, x=left, y=right: jax.block_until_ready(program(x, y))
    flops = 2 * batch * length * width * np.array([width, length])
    for (work, times), each in zip(paired(works, rounds=31, warm=3).items(), flops, strict=True):
        yield of_limit(f"recall cell, {work}", "its FLOPs over the matmul rate", times, each / machine.matmul_rate())


def _column(symbol: str) -> float:
    """Seconds of the command that trains the cell at all rates."""
    study = (
        "import ml_collections\n\nfrom experiments.grid import axis\n\n\n"
        f"def get_config():\n    return ml_collections.ConfigDict({_cell(symbol)!r})\n\n\n"
        f"def sweep():\n    return axis('optimizer.learning_rate', {list(peers_sweeps.RATES)!r})\n"
    )
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "recall.py"
        config.write_text(study)
        sweep = [sys.executable, "-m", "experiments.sweep", f"--config={config}", f"--workdir={folder}/runs"]
        return _timed([*sweep, "--workers=2", "--report=false", "--stage=tune"])[0]


def _timed(command: list[str]) -> tuple[float, str]:
    """Seconds of a process that finds an empty cache, and what it printed."""
    with tempfile.TemporaryDirectory() as folder:
        begun = time.perf_counter()
        said = _run(command, HYBRID_CACHE=folder)
        return time.perf_counter() - begun, said


def _cell(symbol: str) -> dict[str, Any]:
    """The cell's config; our own task, made on the device inside of the step, as a study has it."""
    length, vocabulary = peers_sweeps.LENGTH, peers_sweeps.VOCABULARY
    sizes = {"vocab_size": vocabulary, "d_model": peers_sweeps.WIDTH, "tie_embeddings": True}
    kind = {"n_heads": 1, "positions": "learned", "max_length": length} if symbol == "A" else {}
    task = {"vocab_size": vocabulary, "num_kv_pairs": peers_sweeps.PAIRS, "fillers": "random"}
    return {
        "model": {"pattern": symbol * peers_sweeps.LAYERS, "dropout": 0.1, **sizes, **kind},
        "data": {"source": "mqar", "seq_len": length, "batch_size": peers_sweeps.BATCH, "task": task},
        "optimizer": {"learning_rate": 1e-3, "weight_decay": 0.1, "clip_norm": None},
        "train": {"steps": STEPS, "log_every": 100},
        "evaluate": {"every": STEPS},
        "checkpoint": {"every": STEPS},
        "tracking": {"mode": "off"},
        "study": {"name": "recall", "seeds": 1, "score": "accuracy"},
        "arm": symbol,
    }


def _recall_step(symbol: str) -> Callable[[], Any]:
    import jax

    from experiments.config import trial_from
    from experiments.step import Program

    trial = trial_from(_cell(symbol))
    program, at = Program(trial), iter(range(10**9))
    values = program.values(trial)
    state = program.init(values)

    def step() -> Any:
        nonlocal state
        state, metrics = program.train_step(state, program.put(peers_sweeps.recall(0, next(at))), values)
        return jax.block_until_ready(metrics)

    return step


FUNCTIONS = {"start": start, "loop": loop, "workers": workers, "products": products, "recall": recall}
