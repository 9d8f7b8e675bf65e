"""Which mixers do the six tasks of MAD? Four stacks on each of them, at its baseline setting.

Command:  python -m experiments.reproduce mad
"""

import ml_collections

from experiments.grid import axis, chain, point, product

STACKS = {"attention": "A-A-", "hyena": "H-H-", "mamba": "M-M-", "striped": "H-A-"}

TASKS = {
    "in-context recall": ("mad-in-context-recall", 64, 1000),
    "fuzzy recall": ("mad-fuzzy-recall", 64, 150),
    "noisy recall": ("mad-noisy-recall", 64, 1000),
    "selective copying": ("mad-selective-copying", 64, 350),
    "memorization": ("mad-memorization", 32, 150),
    "compression": ("mad-compression", 32, 250),
}
"""Task -> its source, the length of a row, and the most steps; recall comes late, and then all at once."""


def get_config() -> ml_collections.ConfigDict:
    """Two mixers with MLPs; half the width of the paper and half its batch, far fewer than its 200 epochs."""
    return ml_collections.ConfigDict(
        {
            "protocol": "mad",
            "model": {"pattern": "A-A-", "d_model": 64, "n_heads": 8, "mamba": {"d_state": 4}},
            "data": {"source": "mad-in-context-recall", "batch_size": 64},
            "optimizer": {"learning_rate": 1e-3},
            "train": {"steps": 1000, "stop_at": 0.99},
            "evaluate": {"every": 50, "sequences": 512},
            "checkpoint": {"every": 1000},
            "study": {"name": "mad", "seeds": 3, "baseline": "attention, in-context recall"},
            "seed": 0,
        }
    )


def sweep() -> list[dict]:
    """Six tasks, each for four stacks at two learning rates; the decay stays at the larger of the paper's two."""
    arms = [
        point(
            {
                "arm": f"{stack}, {task}",
                "model.pattern": pattern,
                "data.source": source,
                "data.seq_len": length,
                "train.steps": steps,
            }
        )
        for task, (source, length, steps) in TASKS.items()
        for stack, pattern in STACKS.items()
    ]
    return product(chain(*arms), axis("optimizer.learning_rate", [1e-3, 3e-3]))
