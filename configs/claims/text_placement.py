"""Where should attention stand among Mamba layers, and how much of it does the loss on film reviews need?

Command:  python -m experiments.reproduce attention-first      (and ratio-basin: one study answers both)
"""

import ml_collections

from experiments.grid import axis, chain, point, product


def get_config() -> ml_collections.ConfigDict:
    """Eight mixers, each followed by an MLP, of equal size."""
    return ml_collections.ConfigDict(
        {
            "model": {
                "mixers": 8,
                "base": "M",
                "insert": "A",
                "count": 0,
                "placement": "even",
                "channel": "-",
                "d_model": 64,
                "n_heads": 4,
                "match": {"parameters": 350_000, "by": "d_ff"},
            },
            "data": {"source": "movie-reviews", "seq_len": 256, "batch_size": 8},
            "optimizer": {"learning_rate": 3e-3, "weight_decay": 0.1, "schedule": "cosine", "warmup_steps": 40},
            "train": {"steps": 400},
            "evaluate": {"every": 100, "sequences": 256},
            "checkpoint": {"every": 200},
            "study": {"name": "text_placement", "seeds": 3, "baseline": "mamba"},
            "seed": 0,
        }
    )


def sweep() -> list[dict]:
    """No attention, one of eight at four places, two and four of eight evenly; three rates each."""
    placed = [
        point({"arm": f"1/8 {place}", "model.count": 1, "model.placement": place})
        for place in ("first", "middle", "last", "even")
    ]
    more = [point({"arm": f"1/{8 // count} even", "model.count": count, "model.placement": "even"}) for count in (2, 4)]
    arms = chain(point({"arm": "mamba"}), *placed, *more)
    return product(arms, axis("optimizer.learning_rate", [3e-3, 8e-3, 2e-2]))
