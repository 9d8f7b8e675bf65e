"""Which part of one layer does recall: attention, a short convolution before it, Mamba, or Mamba's convolution?

Command:  python -m experiments.reproduce sharp-four
"""

import ml_collections

from experiments.grid import axis, chain, point, product


def get_config() -> ml_collections.ConfigDict:
    """One mixer, no MLP; four keys with values in 64 tokens, each asked for once."""
    return ml_collections.ConfigDict(
        {
            "protocol": "hybrid",
            "model": {"pattern": "A", "d_model": 64, "n_heads": 1, "positions": "rope", "mamba": {"conv": True}},
            "data": {"source": "mqar", "seq_len": 64, "task": {"vocab_size": 64, "num_kv_pairs": 4}},
            "optimizer": {"learning_rate": 3e-3},
            "train": {"steps": 1500, "stop_at": 0.995},
            "study": {"name": "sharp_four", "seeds": 3, "baseline": "attention"},
            "seed": 0,
        }
    )


def sweep() -> list[dict]:
    """Four layers at four learning rates; three seeds of the best."""
    arms = chain(
        point({"arm": "attention", "model.pattern": "A"}),
        point({"arm": "convolution, attention", "model.pattern": "CA"}),
        point({"arm": "mamba", "model.pattern": "M"}),
        point({"arm": "mamba without convolution", "model.pattern": "M", "model.mamba.conv": False}),
    )
    return product(arms, axis("optimizer.learning_rate", [1e-3, 3e-3, 1e-2, 3e-2]))
