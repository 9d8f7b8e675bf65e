"""How much attention does recall need? The share of attention among Mamba's layers, on multi-query associative recall.

Command:  python -m experiments.sweep --config=configs/recall.py --workdir=runs/recall
Time:     not measured yet
Finding:  not run yet
"""

import ml_collections

from experiments.grid import axis, chain, point, product


def get_config() -> ml_collections.ConfigDict:
    """Four mixers and no MLP, as zoology has it; fresh rows at every step, 16 pairs in 64 tokens.

    Mamba's state is small on purpose (4 a channel): with more than the pairs need there is nothing to see.
    """
    return ml_collections.ConfigDict(
        {
            "protocol": "hybrid",
            "model": {
                "mixers": 4,
                "base": "M",
                "insert": "A",
                "count": 0,
                "placement": "even",
                "d_model": 64,
                "n_heads": 1,
                "positions": "rope",
                "mamba": {"d_state": 4},
            },
            "data": {
                "source": "mqar",
                "task": {"vocab_size": 256, "num_kv_pairs": 16},
                "slices": {f"{pairs} pairs": {"num_kv_pairs": pairs} for pairs in (4, 8)},
                "seq_len": 64,
                "batch_size": 64,
            },
            "train": {"steps": 2000, "log_every": 50, "stop_at": 0.999},
            "evaluate": {"every": 100, "sequences": 512},
            "checkpoint": {"every": 500},
            "study": {"name": "recall", "seeds": 3, "baseline": "0"},
            "seed": 0,
        }
    )


def sweep() -> list[dict]:
    """Every share of attention at four rates; the best one on validation is confirmed with three seeds."""
    shares = {"0": 0, "1/4": 1, "1/2": 2, "1": 4}
    arms = chain(*(point({"arm": share, "model.count": count}) for share, count in shares.items()))
    return product(arms, axis("optimizer.learning_rate", [3e-4, 1e-3, 3e-3, 1e-2]))
