"""Can a stack learn a map from its prompt, and does it at least answer in the right form?

Command:  python -m experiments.reproduce few-shot
"""

import ml_collections

from experiments.grid import axis, chain, point, product


def get_config() -> ml_collections.ConfigDict:
    """Eight mixers with MLPs of equal size; sixteen examples of a map of four patterns to label words."""
    return ml_collections.ConfigDict(
        {
            "protocol": "hybrid",
            "model": {
                "mixers": 8,
                "base": "M",
                "insert": "A",
                "count": 0,
                "placement": "even",
                "channel": "-",
                "d_model": 64,
                "n_heads": 4,
                "positions": "none",
                "mamba": {"d_state": 4},
                "match": {"parameters": 280_000, "by": "d_ff"},
            },
            "data": {"source": "few-shot", "seq_len": 96, "batch_size": 16},
            "optimizer": {"learning_rate": 3e-3},
            "train": {"steps": 1000, "stop_at": 0.995},
            "study": {"name": "few_shot", "seeds": 3, "baseline": "mamba"},
            "seed": 0,
        }
    )


def sweep() -> list[dict]:
    """Mamba, one attention layer in eight and in four, attention; three learning rates, three seeds of the best."""
    arms = chain(
        point({"arm": "mamba", "model.count": 0}),
        point({"arm": "1:7", "model.count": 1}),
        point({"arm": "1:3", "model.count": 2}),
        point({"arm": "attention", "model.base": "A", "model.positions": "rope"}),
    )
    return product(arms, axis("optimizer.learning_rate", [1e-3, 3e-3, 1e-2]))
