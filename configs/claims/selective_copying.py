"""Does copying what stands among noise need selection, and which of dt, B and C must select?

Command:  python -m experiments.reproduce selective-copying
"""

import ml_collections

from experiments.grid import axis, chain, point, product


def get_config() -> ml_collections.ConfigDict:
    """Two mixers of width 64; 4 tokens among 56 of noise (the paper: 16 among 4080)."""
    return ml_collections.ConfigDict(
        {
            "protocol": "hybrid",
            "model": {
                "pattern": "MM",
                "d_model": 64,
                "n_heads": 4,
                "positions": "none",
                "mamba": {"selective": "dt,B,C"},
            },
            "data": {"source": "selective-copying", "seq_len": 64, "batch_size": 32, "task": {"data_tokens": 4}},
            "optimizer": {"learning_rate": 3e-3},
            "train": {"steps": 1500, "stop_at": 0.995},
            "study": {"name": "selective_copying", "seeds": 5, "tune_seeds": 2, "baseline": "none selective"},
            "seed": 0,
        }
    )


def sweep() -> list[dict]:
    """Mamba with each of its three selections, Hyena; two rates on two seeds each, five seeds of the better."""
    kinds = {"all selective": "dt,B,C", "none selective": "none", "dt": "dt", "B": "B", "C": "C"}
    mamba = [point({"arm": name, "model.mamba.selective": what}) for name, what in kinds.items()]
    arms = chain(*mamba, point({"arm": "hyena", "model.pattern": "HH"}))
    return product(arms, axis("optimizer.learning_rate", [2e-3, 5e-3]))
