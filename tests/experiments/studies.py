"""Tiny studies through the real command, trained by fake_trainer.py: for tests of everything around training."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]

CONFIG = """
from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder, required_placeholder
from experiments.grid import axis, chain, point, product, zipped

def get_config():
    c = ConfigDict()
    c.model = ConfigDict({model})
    c.data = ConfigDict(dict(source="folder", folder={text!r}, seq_len=32, batch_size=4))
    c.optimizer = ConfigDict(dict(learning_rate=1e-3, warmup_steps=2))
    c.train = ConfigDict(dict(steps=20, log_every=5))
    c.evaluate = ConfigDict(dict(every=10, sequences=8))
    c.checkpoint = ConfigDict(dict(every=5))
    c.tracking = ConfigDict(dict(mode="off"))
    c.study = ConfigDict(dict(name="tiny", seeds=2))
    {lines}
    return c

{sweep}
"""

PLACED = 'dict(mixers=4, base="M", insert="A", ratio="1:3", channel="-", d_model=16, n_heads=2)'
PATTERN = 'dict(pattern="M-A-", d_model=16, n_heads=2)'
SWEEP = """
def sweep():
    rates = axis("optimizer.learning_rate", [1e-3, 3e-3])
    return product(axis("model.placement", ["even", "first"]), rates)
"""


def text_folder() -> Path:
    """A folder of small texts, the same on every call."""
    folder = ROOT / ".cache" / "tests" / "texts"
    if not folder.is_dir():
        made = folder.with_name(f"texts-{os.getpid()}")
        made.mkdir(parents=True, exist_ok=True)
        for name in range(40):
            words = [hashlib.sha256(f"{name} {n}".encode()).hexdigest()[:7] for n in range(400)]
            (made / f"{name:02}.txt").write_text(" ".join(words) + "\n")
        try:
            made.rename(folder)
        except OSError:  # another process was first
            assert folder.is_dir()
    return folder


@dataclass
class Result:
    code: int
    out: str
    err: str
    cpu: float
    """Seconds of processor time of the command and of what it started."""
    pid: int = 0


@dataclass
class Workshop:
    """A place for one config and one study folder."""

    folder: Path
    environment: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        shared = ROOT / ".cache" / "tests"
        defaults = {
            "HYBRID_DATA": str(shared / "data"),
            "HYBRID_CACHE": str(shared),
            "HYBRID_TRAINER": "fake_trainer:train",
            "PYTHONPATH": str(HERE),
            "JAX_PLATFORMS": "cpu",
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",  # as users have it: processes start again and again
            "PYTHONDONTWRITEBYTECODE": "",
        }
        self.environment = {**os.environ, **defaults, **self.environment}
        self.write()

    @property
    def workdir(self) -> Path:
        return self.folder / "run"

    @property
    def config(self) -> Path:
        return self.folder / "config.py"

    def write(self, *, model: str = PLACED, lines: str = "pass", sweep: str = SWEEP, text: Path | None = None) -> None:
        folder = str(text or text_folder())
        self.config.write_text(CONFIG.format(model=model, lines=lines, sweep=sweep, text=folder))

    def arguments(self, *more: str) -> list[str]:
        return [f"--config={self.config}", f"--workdir={self.workdir}", *more]

    def start(self, *arguments: str, **environment: str) -> subprocess.Popen:
        """The command with exactly these arguments."""
        command = [sys.executable, "-m", "experiments.sweep", *arguments]
        variables = {**self.environment, **environment}
        pipes: dict[str, Any] = {
            "start_new_session": True,
            "stdout": subprocess.PIPE,
            "stderr": subprocess.PIPE,
            "text": True,
        }
        return subprocess.Popen(command, cwd=ROOT, env=variables, stdin=subprocess.DEVNULL, **pipes)

    def command(self, *arguments: str, **environment: str) -> Result:
        before = _cpu()
        process = self.start(*arguments, **environment)
        out, err = process.communicate(timeout=300)
        return Result(process.returncode, out, err, _cpu() - before, process.pid)

    def sweep(self, *more: str, **environment: str) -> Result:
        """The study, without the report that takes seconds."""
        return self.command(*self.arguments("--report=false", *more), **environment)

    # ---------------------------------------------------------------------------------------------- what is on disk
    def json(self, name: str) -> Any:
        return json.loads((self.workdir / name).read_text())

    def runs(self) -> list[Path]:
        return sorted((self.workdir / "trials").iterdir())

    def events(self, name: str) -> list[dict[str, Any]]:
        files = self.workdir.glob("trials/*/events.jsonl")
        lines = [line for file in files for line in file.read_text().splitlines()]
        return [event for event in map(json.loads, lines) if event["event"] == name]

    def results(self) -> dict[str, tuple[Any, Any, bytes]]:
        """Run -> (its result, what its last checkpoint holds, the bytes of its metrics): all that must not change."""
        return {
            run.name: (
                {k: v for k, v in json.loads((run / "done.json").read_text()).items() if k != "seconds"},
                _state(max((run / "checkpoints").glob("[0-9]*"), key=lambda path: int(path.stem))),  # no torn file
                (run / "metrics.jsonl").read_bytes(),
            )
            for run in self.runs()
        }


def _state(checkpoint: Path) -> Any:
    """A file of fake_trainer.py, or the digests of every parameter and moment of a real checkpoint."""
    if checkpoint.is_file():
        return json.loads(checkpoint.read_text())
    return json.loads((checkpoint / "meta" / "metadata").read_text())["digests"]


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def wait_for(condition: Callable[[], Any], seconds: float = 30.0) -> Any:
    """What `condition` gives as soon as it is true; an AssertionError when it never is."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.02)
    raise AssertionError(f"{condition} did not become true in {seconds} s")


def alive(pid: int) -> bool:
    """Whether a process runs (one that ended and was not waited for does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
