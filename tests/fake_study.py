"""Writes study folders as the sweep leaves them, without training: for tests of what reads them.

python tests/fake_study.py runs/fake            6 arms, 2 learning rates, 3 seeds; one run diverged, one failed
python tests/fake_study.py runs/fake large      16 arms of 8 mixers, 3 learning rates, 3 seeds
python tests/fake_study.py runs/fake recall     5 arms compared by accuracy: a seed learns the task or does not
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import random
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from experiments.files import encode
from hybrid import pattern as patterns
from hybrid.placement import place

VERSIONS = {"python": "3.11.7", "jax": "0.10.2", "hybrid": "0.1.0", "commit": "0123456789ab"}
TOKENS_PER_STEP, STEPS, EVERY = 2048, 200, 20


@dataclasses.dataclass(frozen=True)
class Arm:
    """An architecture; `floor` is the bits per byte that it tends to, `rate` the learning rate it likes best."""

    pattern: str
    placement: str
    floor: float
    rate: float = 3e-3
    parameters: int = 400_000
    flops_per_token: int = 2_400_000
    state_bytes: int = 65_536
    learns: float | None = None  # share of seeds that learn to recall; None: the study knows no accuracy


ARMS = {
    "attention": Arm("(A-)4", "", 2.42, parameters=401_920, flops_per_token=2_630_000, state_bytes=262_144),
    "mamba": Arm("(M-)4", "", 2.30, parameters=398_336, flops_per_token=2_410_000, state_bytes=24_576),
    "hyena": Arm("(H-)4", "", 2.47, parameters=405_248, flops_per_token=2_890_000, state_bytes=131_072),
    "quarter_even": Arm("M-M-A-M-", "even", 2.21, state_bytes=83_968),
    "quarter_first": Arm("A-(M-)3", "first", 2.29, state_bytes=83_968),
    "half_even": Arm("(M-A-)2", "even", 2.24, flops_per_token=2_520_000, state_bytes=143_360),
}


@dataclasses.dataclass(frozen=True)
class Run:
    """One run folder. `validation` and `test` are the final bits per byte; None: taken from the arm's curve."""

    arm: str
    seed: int
    learning_rate: float
    stage: str = "tune"
    status: str = "done"  # done | diverged | failed | stopped | queued
    validation: float | None = None
    test: float | None = None
    architecture: Arm | None = None
    symbols: tuple[tuple[str, str], ...] = ()  # the user's letters and their kinds

    @property
    def made_of(self) -> Arm:
        return self.architecture or ARMS[self.arm]

    @property
    def id(self) -> str:
        return hashlib.sha256(f"{self.arm} {self.seed} {self.learning_rate}".encode()).hexdigest()[:12]


def settings(name: str, baseline: str, score: str) -> dict[str, Any]:
    """The study's own part of the config."""
    return {"name": name, "seeds": 3, "baseline": baseline, "tune": ["optimizer.learning_rate"], "score": score}


def record(run: Run, study: dict[str, Any]) -> dict[str, Any]:
    """config.json of a run."""
    arm = run.made_of
    sequence = patterns.expand(arm.pattern)
    summary = patterns.summary(arm.pattern, dict(run.symbols))
    trial: dict[str, Any] = {
        "model": {"pattern": arm.pattern, "symbols": {x: {"kind": k} for x, k in run.symbols}, "d_model": 64},
        "data": {"source": "shakespeare", "tokenizer": "bytes", "seq_len": 256, "batch_size": 8},
        "optimizer": {"learning_rate": run.learning_rate, "weight_decay": 0.1, "schedule": "cosine"},
        "train": {"steps": STEPS, "log_every": EVERY},
        "study": study,
        "arm": run.arm,
        "seed": run.seed,
    }
    derived = {
        "pattern": list(sequence),
        "compact": patterns.compact(sequence),
        "ratio": str(summary.ratio),
        "placement": arm.placement,
        "parameters": {
            "total": arm.parameters,
            "active": arm.parameters,
            "without_embeddings": arm.parameters - 257 * 64,
        },
        "flops_per_token": arm.flops_per_token,
        "state_bytes": arm.state_bytes,
        "fingerprint": "f00dcafe0001",
    }
    return {
        "id": run.id,
        "arm": run.arm,
        "study": study["name"],
        "stage": run.stage,
        "trial": trial,
        "derived": derived,
        "versions": VERSIONS,
    }


def rows(run: Run) -> list[dict[str, Any]]:
    """metrics.jsonl: a power law to the arm's floor with seeded noise; a rate that is not the arm's own costs 4 %."""
    arm = run.made_of
    noise = random.Random(run.id)
    level = arm.floor * (1 + 0.04 * abs(math.log10(run.learning_rate / arm.rate))) + noise.gauss(0, 0.012)
    last = {"done": STEPS, "diverged": STEPS // 2, "failed": STEPS // 4, "stopped": STEPS // 2}[run.status]
    made: list[dict[str, Any]] = []
    for step in range(EVERY, last + 1, EVERY):
        tokens = step * TOKENS_PER_STEP
        at = {"step": step, "tokens": tokens, "flops": tokens * arm.flops_per_token}
        bits = level + 5.3 * (step / 2) ** -0.75 - 5.3 * (STEPS / 2) ** -0.75
        train = math.nan if run.status == "diverged" and step == last else bits + noise.gauss(0, 0.04)
        train_values = {
            "train/loss": train * math.log(2),
            "train/bits_per_byte": train,
            "train/gradient_norm": abs(noise.gauss(0.6, 0.1)),
            "train/update_ratio": 1e-3,
            "train/learning_rate": run.learning_rate,
        }
        made.append(at | train_values)
        if not math.isnan(train):
            at = at | ({} if arm.learns is None else {"validation/accuracy": accuracy(run, step)})
            value = run.validation if step == STEPS and run.validation is not None else bits
            made.append(at | {"validation/loss": value * math.log(2), "validation/bits_per_byte": value})
    if run.status == "done":
        value = run.test if run.test is not None else made[-1]["validation/bits_per_byte"] + 0.03
        at = {key: value for key, value in at.items() if "/" not in key}
        at |= {} if arm.learns is None else {"test/accuracy": accuracy(run, STEPS)}
        made.append(at | {"test/loss": value * math.log(2), "test/bits_per_byte": value})
    return made


def accuracy(run: Run, step: int) -> float:
    """All at once: near 0.2 until the step at which the run learns to recall, if it does, and near 1 from there on."""
    chance = random.Random(f"{run.id} recall")
    far = abs(math.log10(run.learning_rate / run.made_of.rate))
    learns, when = chance.random() < (run.made_of.learns or 0) * (1 - far), chance.randint(3, 8) * EVERY
    noise = random.Random(f"{run.id} {step}").random()
    return 1 - 0.01 * noise if learns and step >= when else 0.2 + 0.05 * noise


def write_run(folder: Path, run: Run, study: dict[str, Any]) -> Path:
    """The run's folder under `folder`/trials."""
    path = folder / "trials" / run.id
    path.mkdir(parents=True)
    (path / "config.json").write_text(json.dumps(record(run, study)))
    if run.status == "queued":
        return path
    made = rows(run)
    (path / "metrics.jsonl").write_text("".join(encode(row) + "\n" for row in made))
    events = [
        {"time": 1e9, "event": "start"},
        {"time": 1e9 + 5, "event": "compiled", "seconds": 4.5},
        {"time": 1e9 + 9, "event": "speed", "step": 100, "tokens_per_second": 30_000.0, "loss": 2.0},
    ]
    (path / "events.jsonl").write_text("".join(encode(row) + "\n" for row in events))
    if run.status == "failed":
        failure = {"phase": "train", "error": "RESOURCE_EXHAUSTED: out of memory |\n17 GiB asked", "attempts": 2}
        (path / "failed.json").write_text(json.dumps(failure))
    if run.status in ("done", "diverged"):
        (path / "done.json").write_text(json.dumps(result(run, made)))
    return path


def result(run: Run, made: list[dict[str, Any]]) -> dict[str, Any]:
    """done.json of a run with these rows."""
    found: dict[str, Any] = {"status": run.status, "parameters": run.made_of.parameters, "seconds": 13.5}
    found |= {key: made[-1][key] for key in ("step", "tokens", "flops")}
    for part in ("validation", "test"):
        scores = [row for row in made if f"{part}/loss" in row]
        if scores:  # a run that diverged may have been evaluated before
            found[part] = {key.removeprefix(f"{part}/"): scores[-1][key] for key in scores[-1] if key.startswith(part)}
    return found


def write(
    folder: Path | str, runs: Iterable[Run], baseline: str = "", score: str = "bits_per_byte", name: str = ""
) -> Path:
    """A study folder with these runs, planned in their order."""
    folder, runs = Path(folder), list(runs)
    folder.mkdir(parents=True, exist_ok=True)
    study = settings(name or folder.name, baseline, score)
    manifest = {
        "study": study["name"],
        "command": f"python -m experiments.sweep --config=configs/quickstart.py --workdir=runs/{study['name']}",
        "baseline": baseline,
        "settings": study,
        "versions": VERSIONS,
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    for stage in ("tune", "confirm"):
        planned = [{"id": run.id, "arm": run.arm} for run in runs if run.stage == stage]
        (folder / f"{stage}.json").write_text(json.dumps({"stage": stage, "runs": planned}))
    for run in runs:
        write_run(folder, run, study)
    return folder


def best(tuned: Iterable[Run]) -> float:
    """The rate that validation chooses."""
    done = [run for run in tuned if run.status == "done"]
    return min(done, key=lambda run: result(run, rows(run))["validation"]["bits_per_byte"]).learning_rate


def quickstart(folder: Path | str) -> Path:
    """6 arms, 2 learning rates on one seed, then seeds 1 and 2 at the better: one tuning run diverged, one failed."""
    runs = []
    for name in ARMS:
        for rate in (1e-3, 3e-3):
            status = "diverged" if (name, rate) == ("hyena", 3e-3) else "done"
            runs.append(Run(name, 0, rate, status=status))
        chosen = best(runs[-2:])
        for seed in (1, 2):
            status = "failed" if (name, seed) == ("half_even", 2) else "done"
            runs.append(Run(name, seed, chosen, stage="confirm", status=status))
    return write(folder, runs, baseline="attention")


def large(folder: Path | str) -> Path:
    """As configs/ratio_placement.py: ratios times places, on three learning rates; two arms lose a rate, one a seed."""
    size = (25_000_000, 160_000_000)  # parameters, FLOPs per token
    arms = {"mamba": Arm("(M-)8", "", 1.62, 1e-3, *size), "attention": Arm("(A-)8", "", 1.70, 1e-3, *size)}
    costs = {"even": 0.0, "middle": 0.01, "sandwich": 0.015, "last": 0.03, "first": 0.06}
    for count, floor in ((1, 1.58), (2, 1.54), (4, 1.56)):
        for word in ("first", "middle", "last", "even", "sandwich"):
            if (word, count) != ("sandwich", 1):
                pattern = "".join(placed(8, count, word))
                arms[f"{count}/8 {word}"] = Arm(pattern, word, floor + costs[word], 1e-3, *size)
    runs = []
    for name, arm in arms.items():
        for rate in (3e-4, 1e-3, 3e-3):
            lost = name in ("1/8 first", "attention") and rate == 3e-3
            runs.append(Run(name, 0, rate, status="diverged" if lost else "done", architecture=arm))
        rate = best(runs[-3:])
        for seed in (1, 2):
            status = "diverged" if (name, seed) == ("4/8 first", 2) else "done"
            runs.append(Run(name, seed, rate, stage="confirm", status=status, architecture=arm))
    return write(folder, runs, baseline="mamba")


def recall(folder: Path | str) -> Path:
    """Compared by accuracy on three learning rates and five seeds: attention always learns, mamba never."""
    sizes = {"parameters": 400_000}
    arms = {
        "attention": Arm("(A-)4", "", 2.4, 1e-3, state_bytes=262_144, learns=1.0, **sizes),
        "mamba": Arm("(M-)4", "", 2.4, 3e-3, state_bytes=24_576, learns=0.0, **sizes),
        "1 of 4 first": Arm("A-(M-)3", "first", 2.4, 3e-3, state_bytes=83_968, learns=0.5, **sizes),
        "1 of 4 even": Arm("M-M-A-M-", "even", 2.4, 3e-3, state_bytes=83_968, learns=0.95, **sizes),
        "1 of 8 even": Arm("(M-)4A-(M-)3", "even", 2.4, 3e-3, state_bytes=108_544, learns=0.7, **sizes),
    }
    runs = []
    for name, arm in arms.items():
        for rate in (1e-3, 3e-3, 1e-2):
            runs.append(Run(name, 0, rate, architecture=arm))
        rate = max(runs[-3:], key=lambda run: accuracy(run, STEPS)).learning_rate
        runs += [Run(name, seed, rate, stage="confirm", architecture=arm) for seed in (1, 2, 3, 4)]
    return write(folder, runs, baseline="attention", score="accuracy")


def placed(mixers: int, count: int, word: str) -> list[str]:
    """`mixers` mixers with MLPs, `count` of them attention."""
    sequence = place(mixers=mixers, base="M", insert="A", count=count, where=word, channel="-")
    return list(patterns.expand(sequence) if isinstance(sequence, str) else sequence)


STUDIES = {"small": quickstart, "large": large, "recall": recall}

if __name__ == "__main__":
    print(STUDIES[(sys.argv[2:] or ["small"])[0]](sys.argv[1]))
