"""Where should the one attention layer of four mixers stand for recall?

Command:  python -m experiments.reproduce recall-placement
"""

import ml_collections

from experiments.grid import axis, chain, point, product


def get_config() -> ml_collections.ConfigDict:
    """Four mixers with MLPs of equal size, one of them attention; twelve keys with values in 64 tokens."""
    return ml_collections.ConfigDict(
        {
            "protocol": "hybrid",
            "model": {
                "mixers": 4,
                "base": "M",
                "insert": "A",
                "count": 1,
                "placement": "even",
                "channel": "-",
                "d_model": 64,
                "n_heads": 4,
                "positions": "none",
                "match": {"parameters": 250_000, "by": "d_ff"},
            },
            "data": {
                "source": "mqar",
                "seq_len": 64,
                "batch_size": 32,
                "task": {"vocab_size": 512, "num_kv_pairs": 12},
            },
            "optimizer": {"learning_rate": 3e-3},
            "train": {"steps": 2500, "stop_at": 0.995},
            "study": {"name": "recall_placement", "seeds": 3, "baseline": "first"},
            "seed": 0,
        }
    )


def sweep() -> list[dict]:
    """Four places at three learning rates; three seeds of the best."""
    places = [point({"arm": place, "model.placement": place}) for place in ("first", "middle", "last", "even")]
    return product(chain(*places), axis("optimizer.learning_rate", [1e-3, 3e-3, 1e-2]))
