"""Where should the one attention layer of four mixers stand for recall?

Command:  python -m experiments.reproduce recall-placement
"""

import ml_collections

from experiments.grid import axis, chain, point, product


def get_config() -> ml_collections.ConfigDict:
    """Four mixers with MLPs of equal size, one of them attention; four keys with values in 64 tokens."""
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
                "mamba": {"d_state": 4},
                "match": {"parameters": 150_000, "by": "d_ff"},
            },
            "data": {
                "source": "mqar",
                "seq_len": 64,
                "batch_size": 64,
                "task": {"vocab_size": 64, "num_kv_pairs": 4},
            },
            "optimizer": {"learning_rate": 3e-3},
            "train": {"steps": 1200, "stop_at": 0.995},
            "study": {"name": "recall_placement", "seeds": 3, "baseline": "first"},
            "seed": 0,
        }
    )


def sweep() -> list[dict]:
    """Four places at two learning rates; three seeds of the best."""
    places = [point({"arm": place, "model.placement": place}) for place in ("first", "middle", "last", "even")]
    return product(chain(*places), axis("optimizer.learning_rate", [1e-3, 3e-3]))
