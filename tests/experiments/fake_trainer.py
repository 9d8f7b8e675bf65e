"""A training function without jax, for tests of everything around training: arithmetic instead of gradients.

It keeps the promises of the real one: it resumes from its checkpoints, writes rows that depend on the trial alone,
saves at once when it is told to stop. Environment variables slow it down or make it fail:
FAKE_STEP (seconds a step), FAKE_FAULT (a fault of FAULTS for the trial with FAKE_ARM, at the middle step).
"""

from __future__ import annotations

import hashlib
import os
import resource
import signal
import time
from pathlib import Path
from typing import Any

from experiments.derived import count
from experiments.files import read_json, remove_temporary, write_json


def _memory() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (2**31, 2**31))
    bytearray(2**33)


def _error() -> None:
    raise ValueError("the loss has no gradient\nhere")


def _disk() -> None:
    raise OSError(28, "No space left on device")


FAULTS = {
    "error": _error,
    "memory": _memory,
    "disk": _disk,
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "abort": os.abort,
    "exit": lambda: os._exit(3),
}


def train(trial: Any, run: Any, programs: dict) -> str:
    """The loop of a run: a number that a hash moves at each step stands for the parameters."""
    record = run.record
    if record["derived"].get("flops_per_token") is None:
        record["derived"].update(count(trial))
        run.create(record)
    programs[record["group"]] = programs.get(record["group"], 0) + 1
    stop: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: stop.append(number))
    state = _restore(run) or {"step": 0, "value": 1.0}
    run.cut(state["step"])
    fault = os.environ.get("FAKE_FAULT") if os.environ.get("FAKE_ARM", trial.arm) == trial.arm else None
    steps = trial.train.steps
    run.event("compiled", seconds=0.0, uses=programs[run.record["group"]], threads=os.environ.get("NPROC"))
    while state["step"] < steps:
        if stop:
            _save(run, state)
            run.event("stopped", step=state["step"])
            return "stopped"
        time.sleep(float(os.environ.get("FAKE_STEP", 0)))
        state = _step(trial, state)
        step = state["step"]
        if fault and step == steps // 2:
            print("about to fail", flush=True)
            FAULTS.get(fault, lambda: None)()
        if step % trial.train.log_every == 0:
            run.append({"step": step, "tokens": step * 128, "train/loss": state["value"]})
            run.event("speed", step=step, tokens_per_second=1000.0, loss=state["value"])
        if step % trial.evaluate.every == 0 or step == steps:
            run.append({"step": step, "validation/loss": state["value"], "validation/bits_per_byte": state["value"]})
        if step % trial.checkpoint.every == 0 or step == steps:
            _save(run, state)
    run.append({"step": steps, "test/loss": state["value"], "test/bits_per_byte": state["value"]})
    score = {"loss": state["value"], "bits_per_byte": state["value"]}
    status = "diverged" if fault == "diverge" else "done"
    scores = {} if status == "diverged" else {"validation": score, "test": score}
    run.finish({"status": status, "step": steps, **scores, "value": state["value"]})
    return status


def _step(trial: Any, state: dict[str, Any]) -> dict[str, Any]:
    about = (trial.model.pattern, trial.seed, trial.optimizer.learning_rate, state["step"], state["value"])
    noise = int(hashlib.sha256(repr(about).encode()).hexdigest()[:8], 16) / 2**32
    return {"step": state["step"] + 1, "value": state["value"] * (0.99 + 0.01 * noise)}


def _save(run: Any, state: dict[str, Any]) -> None:
    write_json(run.checkpoints / f"{state['step']:06d}.json", state)
    run.event("checkpoint", step=state["step"])


def _restore(run: Any) -> dict[str, Any] | None:
    remove_temporary(run.checkpoints)  # of a save that was killed
    kept = sorted(Path(run.checkpoints).glob("[0-9]*.json"))
    if not kept:
        return None
    state = read_json(kept[-1])
    run.event("resume", step=state["step"])
    return state


def taking_memory(trial: Any, run: Any, programs: dict) -> str:
    """Takes 100 MiB in each of four threads and fails: the error says how many lie on the heap that is kept."""
    import ctypes
    import threading

    malloc = ctypes.CDLL(None).malloc
    malloc.argtypes, malloc.restype = [ctypes.c_size_t], ctypes.c_size_t
    taken: list[int] = []
    threads = [threading.Thread(target=lambda: taken.append(malloc(100 * 2**20))) for _ in range(4)]
    for thread in threads:
        thread.start()
        thread.join()
    heap = next(line for line in Path("/proc/self/maps").read_text().splitlines() if line.endswith("[heap]"))
    low, high = (int(end, 16) for end in heap.split()[0].split("-"))
    raise ValueError(f"{sum(low <= place < high for place in taken)} of {len(taken)} on the heap")
