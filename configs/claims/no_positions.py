"""Does a Mamba before attention make positions unnecessary? With and without rotary ones, Mamba or attention first.

Command:  python -m experiments.reproduce no-positions
"""

import ml_collections

from experiments.grid import axis, chain, point, product


def get_config() -> ml_collections.ConfigDict:
    """Four mixers with MLPs of equal size on bytes of film reviews."""
    return ml_collections.ConfigDict(
        {
            "model": {
                "pattern": "M-(A-)3",
                "positions": "rope",
                "d_model": 64,
                "n_heads": 4,
                "match": {"parameters": 250_000, "by": "d_ff"},
            },
            "data": {"source": "movie-reviews", "seq_len": 128, "batch_size": 16},
            "optimizer": {"learning_rate": 3e-3, "weight_decay": 0.1, "schedule": "cosine", "warmup_steps": 40},
            "train": {"steps": 800},
            "evaluate": {"every": 200, "sequences": 256},
            "checkpoint": {"every": 400},
            "study": {"name": "no_positions", "seeds": 3, "baseline": "attention, rope"},
            "seed": 0,
        }
    )


def sweep() -> list[dict]:
    """Two stacks with and without rotary positions, at three learning rates; three seeds of the best."""
    stacks = {"attention": "(A-)4", "mamba first": "M-(A-)3"}
    arms = [
        point({"arm": f"{name}, {positions}", "model.pattern": pattern, "model.positions": positions})
        for name, pattern in stacks.items()
        for positions in ("rope", "none")
    ]
    return product(chain(*arms), axis("optimizer.learning_rate", [1e-3, 3e-3, 1e-2]))
