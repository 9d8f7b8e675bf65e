"""Which mixers do the tasks of MAD? Its baseline of in-context recall; --config.data.source names another of its tasks.

Command:  python -m experiments.reproduce mad-recall
"""

import ml_collections

from experiments.grid import axis, chain, point, product


def get_config() -> ml_collections.ConfigDict:
    """Two mixers with MLPs of width 128, as the paper; 20 epochs instead of 200."""
    return ml_collections.ConfigDict(
        {
            "protocol": "mad",
            "model": {"pattern": "A-A-", "mamba": {"d_state": 4}},
            "data": {"source": "mad-in-context-recall"},
            "optimizer": {"learning_rate": 5e-4},
            "train": {"steps": 2000},
            "study": {"name": "mad", "seeds": 3, "baseline": "attention"},
            "seed": 0,
        }
    )


def sweep() -> list[dict]:
    """Four stacks at the paper's three learning rates and two decays."""
    arms = chain(
        point({"arm": "attention", "model.pattern": "A-A-"}),
        point({"arm": "hyena", "model.pattern": "H-H-"}),
        point({"arm": "mamba", "model.pattern": "M-M-"}),
        point({"arm": "hyena, attention", "model.pattern": "H-A-"}),
    )
    settings = [axis("optimizer.learning_rate", [1e-4, 5e-4, 1e-3]), axis("optimizer.weight_decay", [0.0, 0.1])]
    return product(arms, *settings)
