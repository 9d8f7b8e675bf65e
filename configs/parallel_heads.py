"""Attention and Mamba one after the other, or side by side on the same input? Falcon-H1 sums the branches, Hymba takes
the mean of normalised ones.

Command:  python -m experiments.sweep --config=configs/parallel_heads.py --workdir=runs/parallel_heads
Time:     two and a half minutes on two free cores by the listing's estimate; run on one shared core
Finding:  undecided. In turn 2.831 ± 0.072 bits per byte, the sum 2.833 ± 0.057, the mean of normalised branches
          2.773 ± 0.024 (0.058 ± 0.073 better: three more seeds would decide a difference of that size).
"""

import ml_collections

from experiments.grid import axis, chain, point, product


def get_config() -> ml_collections.ConfigDict:
    """Two attentions and two Mambas in every stack, and equal parameters."""
    return ml_collections.ConfigDict(
        {
            "model": {
                "pattern": "(M-A-)2",
                "d_model": 64,
                "n_heads": 4,
                "match": {"parameters": 250_000, "by": "d_ff"},
            },
            "data": {"source": "shakespeare", "seq_len": 128, "batch_size": 8},
            "optimizer": {"learning_rate": 3e-3, "weight_decay": 0.1, "schedule": "cosine", "warmup_steps": 40},
            "train": {"steps": 400},
            "evaluate": {"every": 100, "sequences": 128},
            "checkpoint": {"every": 400},
            "study": {"name": "parallel_heads", "seeds": 3, "baseline": "in turn"},
            "seed": 0,
        }
    )


def sweep() -> list[dict]:
    """Three ways to join the same sublayers, at two learning rates; three seeds of the better one."""
    arms = [
        point({"arm": "in turn", "model.pattern": "(M-A-)2"}),
        point({"arm": "side by side, sum", "model.pattern": "([A|M]-)2", "model.merge": "sum"}),
        point({"arm": "side by side, mean", "model.pattern": "([A|M]-)2", "model.merge": "mean"}),
    ]
    return product(chain(*arms), axis("optimizer.learning_rate", [3e-3, 1e-2]))
