"""Who still finds what followed a sign when the text is many times longer than in training?

Command:  python -m experiments.reproduce induction-heads
"""

import ml_collections

from experiments.grid import axis, chain, point, product

LONGEST = 14


def get_config() -> ml_collections.ConfigDict:
    """Two mixers; trained on 64 tokens, tested on 2^6 to 2^14.

    It is trained on when it knows the task: Mamba that was stopped at 0.995 found 0.5 to 0.7 of the answers at 2^10.
    """
    rows = {n: 64 if n <= 12 else 16 for n in range(6, LONGEST + 1)}  # attention at 2^14 costs a second a row
    slices = {f"2^{n}": {"seq_len": 2**n, "sequences": rows[n], "if_too_long": "skip"} for n in rows}
    return ml_collections.ConfigDict(
        {
            "protocol": "hybrid",
            "model": {"pattern": "MM", "d_model": 64, "n_heads": 8, "positions": "none"},
            "data": {"source": "induction-heads", "seq_len": 64, "batch_size": 32, "slices": slices},
            "optimizer": {"learning_rate": 1e-3, "schedule": "constant", "weight_decay": 0.0},
            "train": {"steps": 4000},
            "study": {"name": "induction_heads", "seeds": 3, "baseline": "attention"},
            "seed": 0,
        }
    )


def sweep() -> list[dict]:
    """Attention with rotary positions, and Mamba, at three learning rates; three seeds of the best."""
    arms = chain(
        point({"arm": "attention", "model.pattern": "AA", "model.positions": "rope"}),
        point({"arm": "mamba", "model.pattern": "MM"}),
    )
    return product(arms, axis("optimizer.learning_rate", [2e-4, 1e-3, 3e-3]))
