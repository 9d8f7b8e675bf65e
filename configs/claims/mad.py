"""Which mixers do the tasks of MAD? Its baseline of in-context recall; --config.data.source names another of its tasks.

Command:  python -m experiments.reproduce mad-recall
"""

import ml_collections

from experiments.grid import axis, chain, point, product


def get_config() -> ml_collections.ConfigDict:
    """Two mixers with MLPs; half the width of the paper, and ten epochs of half the rows instead of 200."""
    return ml_collections.ConfigDict(
        {
            "protocol": "mad",
            "model": {"pattern": "A-A-", "d_model": 64, "n_heads": 8, "mamba": {"d_state": 4}},
            "data": {"source": "mad-in-context-recall", "batch_size": 64, "examples": 6400},
            "optimizer": {"learning_rate": 5e-4},
            "train": {"steps": 1000},
            "study": {"name": "mad", "seeds": 3, "baseline": "attention"},
            "seed": 0,
        }
    )


def sweep() -> list[dict]:
    """Four stacks at three learning rates; the decay stays at the larger of the paper's two."""
    arms = chain(
        point({"arm": "attention", "model.pattern": "A-A-"}),
        point({"arm": "hyena", "model.pattern": "H-H-"}),
        point({"arm": "mamba", "model.pattern": "M-M-"}),
        point({"arm": "hyena, attention", "model.pattern": "H-A-"}),
    )
    return product(arms, axis("optimizer.learning_rate", [5e-4, 1e-3, 3e-3]))
