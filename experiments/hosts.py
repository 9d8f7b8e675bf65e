"""One training in several processes, on one machine or on many: who is who, and what they agree on.

    HYBRID_COORDINATOR=10.0.0.1:8476 HYBRID_PROCESSES=4 HYBRID_PROCESS=0 python -m experiments.train ...

Each process is started with the same arguments and these variables (under SLURM the last two may be left out: they are
SLURM_NTASKS and SLURM_PROCID). They share the run's folder. All of them compute; the first alone writes: run folder,
checkpoints, W&B. What they decide by themselves (where to go on, when to stop) they decide alike: the first process
says which checkpoint is taken, and a signal to one of them stops all of them at one step.

Without the variables there is one process and every function here returns at once. No jax at import.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from experiments.runs import RunFolder
from hybrid.validation import ConfigError

Tree = Any
T = TypeVar("T")

COORDINATOR, PROCESSES, PROCESS = "HYBRID_COORDINATOR", "HYBRID_PROCESSES", "HYBRID_PROCESS"
SLURM = {PROCESSES: "SLURM_NTASKS", PROCESS: "SLURM_PROCID"}


@dataclass(frozen=True)
class Hosts:
    """The place of this process among those of a training."""

    coordinator: str
    """host:port that the first process listens at and all can reach"""
    processes: int = 1
    process: int = 0

    @property
    def is_first(self) -> bool:
        return self.process == 0


def asked(environment: Mapping[str, str] = os.environ) -> Hosts | None:
    """What the environment says, None where it names no coordinator. Raises ConfigError where it cannot be so."""
    coordinator = environment.get(COORDINATOR, "")
    if not coordinator:
        return None
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdecimal():
        raise ConfigError(COORDINATOR, f"{coordinator!r} is not allowed; must be HOST:PORT")
    numbers = {}
    for name, other in SLURM.items():
        text = environment.get(name) or environment.get(other, "")
        if not text.isdecimal():
            problem = f"{text!r} is not allowed; must be a number" if text else f"must be given (or {other})"
            raise ConfigError(name, f"{problem} beside {COORDINATOR}")
        numbers[name] = int(text)
    if not 0 <= numbers[PROCESS] < numbers[PROCESSES]:
        raise ConfigError(PROCESS, f"{numbers[PROCESS]} is not allowed; must be below {PROCESSES}")
    return Hosts(coordinator, numbers[PROCESSES], numbers[PROCESS])


@contextlib.contextmanager
def joined(hosts: Hosts | None) -> Iterator[None]:
    """Connects the processes (jax.distributed); leaves when all have come to the end. After environment.prepare()."""
    if hosts is None:
        yield
        return
    import jax

    from experiments.environment import accelerator

    if not accelerator():
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(hosts.coordinator, num_processes=hosts.processes, process_id=hosts.process)
    yield
    jax.distributed.shutdown()  # waits for all; after an error nobody waits, and the others are told by the coordinator


def count() -> int:
    import jax

    return jax.process_count()


def wait(what: str) -> None:
    """Returns when all processes are here. what: a name of the place."""
    if count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(what)


def from_first(number: int) -> int:
    """The number that the first process has."""
    if count() == 1:
        return number
    import numpy as np
    from jax.experimental import multihost_utils

    return int(multihost_utils.broadcast_one_to_all(np.int32(number)))


def any_of(flag: bool) -> bool:
    """Whether it is so in one of the processes."""
    if count() == 1:
        return flag
    import numpy as np
    from jax.experimental import multihost_utils

    return bool(multihost_utils.process_allgather(np.bool_(flag)).any())


class Together:
    """A wish to stop that all processes see at the same time: `asked` may be read wherever all of them read it.

    They talk at every `every`-th reading alone, as it holds up what the devices have to do.
    """

    def __init__(self, stop: Any, every: int):
        self._stop, self._every, self._readings, self._agreed = stop, every, 0, False

    @property
    def asked(self) -> bool:
        if count() == 1:
            return self._stop.asked
        if not self._agreed and self._readings % self._every == 0:
            self._agreed = any_of(self._stop.asked)
        self._readings += 1
        return self._agreed


# --- arrays -----------------------------------------------------------------------------------------------------------


def onto(tree: Tree, shardings: Any) -> Tree:
    """Values that every process has on its host, on the mesh of all of them. shardings: one, or a tree of them."""
    import jax

    if count() == 1:
        return jax.device_put(tree, shardings)
    import numpy as np

    def one(leaf: Any, sharding: Any) -> Any:
        if jax.dtypes.issubdtype(getattr(leaf, "dtype", np.float32), jax.dtypes.prng_key):
            return jax.random.wrap_key_data(one(jax.random.key_data(leaf), sharding))
        array = np.asarray(leaf)
        return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

    if isinstance(shardings, jax.sharding.Sharding):
        return jax.tree.map(lambda leaf: one(leaf, shardings), tree)
    return jax.tree.map(one, tree, shardings)


def whole(leaf: Any) -> Any:
    """An array on the host, gathered where its parts lie with other processes."""
    import jax
    import numpy as np

    if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable or leaf.is_fully_replicated:
        return np.array(jax.device_get(leaf), copy=True)
    from jax.experimental import multihost_utils

    return np.asarray(multihost_utils.process_allgather(leaf, tiled=True))


# --- run folders ------------------------------------------------------------------------------------------------------


class Follower(RunFolder):
    """The run folder of a process that is not the first: it reads what the first writes, and writes nothing."""

    writes = False

    def create(self, record: Mapping[str, Any]) -> RunFolder:
        return self

    @contextlib.contextmanager
    def claim(self) -> Iterator[RunFolder]:
        yield self

    def append(self, row: Mapping[str, Any]) -> None: ...
    def cut(self, step: int) -> None: ...
    def sync(self) -> None: ...
    def event(self, name: str, **values: Any) -> None: ...
    def finish(self, result: Mapping[str, Any]) -> None: ...
    def fail(self, phase: str, error: str, **values: Any) -> None: ...
    def retry(self) -> None: ...


def first_makes(hosts: Hosts | None, make: Callable[[], tuple[T, RunFolder]]) -> tuple[T, RunFolder]:
    """(trial, run folder): the first process makes both, then the others find what it made."""
    if hosts is None:
        return make()
    made = make() if hosts.is_first else None
    wait("the run's folder is there")
    if made is not None:
        return made
    trial, run = make()
    return trial, Follower(run.path)
