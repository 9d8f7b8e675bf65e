"""Synthetic tasks: rows that are made on the device from numbers. The table; no heavy imports.

    TASKS["mqar"].row(MQARConfig(), 64, jax.random.key(0), True)

One file a task, or a close family. A task's name is a `data.source`, its fields are `data.task`.
"""

from __future__ import annotations

from experiments.data.synthetic import copying, few_shot, induction, mad_memory, mad_recall, mqar, needle, parity
from experiments.data.synthetic.task import Task

TASKS: dict[str, Task] = {
    "mqar": mqar.TASK,
    "mad-in-context-recall": mad_recall.IN_CONTEXT,
    "mad-fuzzy-recall": mad_recall.FUZZY,
    "mad-noisy-recall": mad_recall.NOISY,
    "mad-selective-copying": mad_memory.COPYING,
    "mad-memorization": mad_memory.MEMORIZATION,
    "mad-compression": mad_memory.COMPRESSION,
    "associative-recall": induction.ASSOCIATIVE,
    "h3-induction-heads": induction.H3_INDUCTION,
    "selective-copying": copying.TASK,
    "induction-heads": induction.INDUCTION,
    "few-shot": few_shot.TASK,
    "needle": needle.TASK,
    "parity": parity.PARITY,
    "cumulative-parity": parity.CUMULATIVE,
    "majority": parity.MAJORITY,
}
