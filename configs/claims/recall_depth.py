"""Is it the share of attention that recall needs, or the count? One and two of eight mixers, beside none and all.

Command:  python -m experiments.reproduce recall-depth
"""

import ml_collections

from experiments.grid import axis, chain, point, product


def get_config() -> ml_collections.ConfigDict:
    """Eight mixers with MLPs of equal size; four keys with values in 32 tokens."""
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
            "data": {
                "source": "mqar",
                "seq_len": 32,
                "batch_size": 64,
                "task": {"vocab_size": 64, "num_kv_pairs": 4},
            },
            "optimizer": {"learning_rate": 3e-3},
            "train": {"steps": 1200, "stop_at": 0.995},
            "study": {"name": "recall_depth", "seeds": 3, "baseline": "none"},
            "seed": 0,
        }
    )


def sweep() -> list[dict]:
    """Four shares of attention at two learning rates; three seeds of the best."""
    arms = chain(
        point({"arm": "none", "model.count": 0}),
        point({"arm": "1/8", "model.count": 1}),
        point({"arm": "1/4", "model.count": 2}),
        point({"arm": "all", "model.base": "A", "model.positions": "rope"}),
    )
    return product(arms, axis("optimizer.learning_rate", [1e-3, 3e-3]))
