"""Does a Mamba before attention replace positions? Attention with and without rotary positions, alone, after and before
a Mamba. (Jamba has no positions at all and says that the Mamba before the first attention tells them.)

Command:  python -m experiments.sweep --config=configs/positions.py --workdir=runs/positions
Time:     five and a half minutes on two free cores by the listing's estimate; run on one shared core
Finding:  yes, nearly. Attention alone loses 0.608 bits per byte without rotary positions (3.656 against 3.048). With
          one Mamba, first or last, the loss is small: 2.900 against 2.877 with the Mamba first, 3.005 against 2.983
          with it last; both without positions are better than attention with them (by 0.148 and 0.043, p = 0.02 each).
          A Mamba first is worth more than one last. The best of two rates lies at an edge for every arm.
"""

import ml_collections

from experiments.grid import axis, chain, point, product


def get_config() -> ml_collections.ConfigDict:
    """Three stacks of four mixers, each followed by an MLP, of equal size."""
    return ml_collections.ConfigDict(
        {
            "model": {
                "pattern": "(A-)4",
                "positions": "rope",
                "d_model": 64,
                "n_heads": 4,
                "match": {"parameters": 250_000, "by": "d_ff"},
            },
            "data": {"source": "shakespeare", "seq_len": 128, "batch_size": 8},
            "optimizer": {"learning_rate": 3e-3, "weight_decay": 0.1, "schedule": "cosine", "warmup_steps": 40},
            "train": {"steps": 400},
            "evaluate": {"every": 100, "sequences": 128},
            "checkpoint": {"every": 400},
            "study": {"name": "positions", "seeds": 3, "baseline": "attention, rope"},
            "seed": 0,
        }
    )


def sweep() -> list[dict]:
    """Every stack with and without rotary positions, at two learning rates; three seeds of the better one."""
    stacks = {"attention": "(A-)4", "mamba first": "M-(A-)3", "mamba last": "(A-)3M-"}
    arms = [
        point({"arm": f"{name}, {positions}", "model.pattern": pattern, "model.positions": positions})
        for name, pattern in stacks.items()
        for positions in ("rope", "none")
    ]
    return product(chain(*arms), axis("optimizer.learning_rate", [3e-3, 1e-2]))
