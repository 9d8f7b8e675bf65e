"""How many layers of a stack need to see everything? Windows of 16 tokens to global attention, 1:1 to 7:1.

Command:  python -m experiments.sweep --config=configs/local_global.py --workdir=runs/local_global
Time:     under three minutes on two free cores by the listing's estimate; run on one shared core
Finding:  at this size and length of training (131,712 parameters, 307 thousand tokens) none does: windows alone reach
          3.481 ± 0.023 bits per byte, 7:1 3.484, 5:1 3.489, 1:1 3.491, 3:1 3.499, all better than global attention
          alone (3.657 ± 0.043, p from 0.007 to 0.03) and alike among each other. One rate was tried, 0.003.
"""

import ml_collections

from experiments.grid import axis, chain, point, product

MIXERS = 12  # 6, 3, 2 and 1 of them are global; as in Gemma 3, the last period may be cut short


def stack(local: int | None) -> str:
    """`local` windows before each global layer (None: windows alone), and an MLP after every second mixer."""
    kinds = ["S" if local is None or (i + 1) % (local + 1) else "A" for i in range(MIXERS)]
    return "".join(kind + ("-" if i % 2 else "") for i, kind in enumerate(kinds))


def get_config() -> ml_collections.ConfigDict:
    """Deep and narrow stacks of equal size: an S has the parameters of an A."""
    return ml_collections.ConfigDict(
        {
            "model": {
                "pattern": stack(0),
                "d_model": 32,
                "n_heads": 4,
                "sliding_window": {"window": 16},
            },
            "data": {"source": "shakespeare", "seq_len": 256, "batch_size": 4},
            "optimizer": {"learning_rate": 3e-3, "weight_decay": 0.1, "schedule": "cosine", "warmup_steps": 30},
            "train": {"steps": 300},
            "evaluate": {"every": 150, "sequences": 64},
            "checkpoint": {"every": 300},
            "study": {"name": "local_global", "seeds": 3, "baseline": "global"},
            "seed": 0,
        }
    )


def sweep() -> list[dict]:
    """One rate for all, because the arms differ in what attention sees and in nothing else; three seeds each."""
    arms = chain(
        point({"arm": "global", "model.pattern": stack(0)}),
        point({"arm": "1:1", "model.pattern": stack(1)}),
        point({"arm": "3:1", "model.pattern": stack(3)}),
        point({"arm": "5:1", "model.pattern": stack(5)}),
        point({"arm": "7:1", "model.pattern": stack(7)}),
        point({"arm": "windows alone", "model.pattern": stack(None)}),
    )
    return product(arms, axis("optimizer.learning_rate", [3e-3]))
