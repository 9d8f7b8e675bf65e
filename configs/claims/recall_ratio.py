"""How much attention does recall need? None, a quarter, a half and all of four mixers.

Command:  python -m experiments.reproduce recall-ratio
"""

import ml_collections

from experiments.grid import axis, chain, point, product


def get_config() -> ml_collections.ConfigDict:
    """Four mixers with MLPs of equal size; four keys with values in 64 tokens."""
    return ml_collections.ConfigDict(
        {
            "protocol": "hybrid",
            "model": {
                "mixers": 4,
                "base": "M",
                "insert": "A",
                "count": 0,
                "placement": "even",
                "channel": "-",
                "d_model": 64,
                "n_heads": 4,
                "positions": "none",
                "mamba": {"d_state": 4},
                "match": {"parameters": 150_000, "by": "d_ff"},
            },
            "data": {
                "source": "mqar",
                "seq_len": 64,
                "batch_size": 64,
                "task": {"vocab_size": 64, "num_kv_pairs": 4},
            },
            "optimizer": {"learning_rate": 3e-3},
            "train": {"steps": 1200, "stop_at": 0.995},
            "study": {"name": "recall_ratio", "seeds": 3, "baseline": "none"},
            "seed": 0,
        }
    )


def sweep() -> list[dict]:
    """Four shares of attention at four learning rates; three seeds of the best."""
    arms = chain(
        point({"arm": "none", "model.count": 0}),
        point({"arm": "1/4", "model.count": 1}),
        point({"arm": "1/2", "model.count": 2}),
        point({"arm": "all", "model.base": "A", "model.positions": "rope"}),
    )
    return product(arms, axis("optimizer.learning_rate", [3e-4, 1e-3, 3e-3, 1e-2]))
