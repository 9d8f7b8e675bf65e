"""Compiles a program once, however many workers want it, and says what came of it.

Workers share XLA's cache on disk. Who wants a program that another process is compiling waits for it instead of
compiling it too, so a study compiles as often as it has programs; `Compilation.cached` says which way it went.
"""

from __future__ import annotations

import contextlib
import fcntl
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jax

from experiments.environment import cache_folder
from experiments.identity import digest
from hybrid.ops.forms import noted

HIT = "/jax/compilation_cache/cache_hits"

LOCKS = 256
"""Files that processes wait at; two programs that share one are compiled one after the other, no more."""


@dataclass(frozen=True)
class Compilation:
    """A program that was made ready."""

    program: str
    """init, train, eval, or train with the number of members side by side: "train x4"."""
    key: str
    """The same for the same program in any process."""
    seconds: float
    """Tracing included."""
    cached: bool
    """It came from the cache on disk."""
    forms: Mapping[str, str]
    """Operator -> the form that it took."""

    def event(self) -> dict[str, Any]:
        """What events.jsonl has of it."""
        about = {"program": self.program, "key": self.key, "seconds": round(self.seconds, 3), "cached": self.cached}
        return {**about, "forms": dict(self.forms)} if self.forms else about


def compiled(
    program: str, about: Any, lower: Callable[[], Any], options: Mapping[str, Any] | None = None
) -> tuple[Any, Compilation]:
    """(executable, what it took). about: plain values that tell this program from all others."""
    begun, key = time.perf_counter(), digest([program, about])
    with noted() as forms, _alone(key):
        lowered = lower()
        before = _hits()
        executable = lowered.compile(compiler_options=dict(options) if options else None)
        cached = _hits() > before
    return executable, Compilation(program, key, time.perf_counter() - begun, cached, forms)


@contextlib.contextmanager
def _alone(key: str) -> Iterator[None]:
    """Holds the lock of a program; the kernel frees that of a process that died.

    Without a cache nobody waits, nor do the processes of one training, which compile together.
    """
    config: Any = jax.config
    cache = config.jax_enable_compilation_cache and config.jax_compilation_cache_dir
    if not cache or jax.process_count() > 1:
        yield
        return
    folder = cache_folder() / "compiling"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = open(folder / str(int(key, 16) % LOCKS), "ab")  # noqa: SIM115
    except OSError:  # a cache folder that cannot be written is no reason not to train
        yield
        return
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


_heard = threading.local()


def _listen(event: str, **_: Any) -> None:
    if event == HIT:
        _heard.hits = _hits() + 1


def _hits() -> int:
    """Programs that this thread took from the cache so far."""
    return getattr(_heard, "hits", 0)


jax.monitoring.register_event_listener(_listen)
