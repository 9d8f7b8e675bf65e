"""Which mixers recall four pairs in 64 tokens, and how wide must they be? Figure 2 of Zoology, its smallest column.

Command:  python -m experiments.reproduce zoology-mqar
"""

import ml_collections

from experiments.grid import axis, chain, point, product


def get_config() -> ml_collections.ConfigDict:
    """The paper's protocol with a smaller vocabulary and fewer epochs; two mixers, no MLP.

    With a vocabulary of 512 and 1,570 steps, attention was still guessing among the four values at three rates.
    """
    return ml_collections.ConfigDict(
        {
            "protocol": "zoology-iclr24",
            "model": {"pattern": "AA", "d_model": 64},
            "data": {
                "source": "mqar",
                "seq_len": 64,
                "batch_size": 64,
                "examples": 20_000,
                "task": {"vocab_size": 64, "num_kv_pairs": 4},
            },
            "optimizer": {"learning_rate": 1e-3},
            "train": {"steps": 2500, "stop_at": 0.99},
            "study": {"name": "zoology_mqar", "seeds": 3, "baseline": "attention 64"},
            "seed": 0,
        }
    )


def sweep() -> list[dict]:
    """Three mixers, two widths, two learning rates from the middle of the paper's four; three seeds of the best."""
    arms = [
        point({"arm": f"{name} {width}", "model.pattern": pattern, "model.d_model": width})
        for name, pattern in (("attention", "AA"), ("hyena", "HH"), ("short convolution", "CC"))
        for width in (64, 128)
    ]
    return product(chain(*arms), axis("optimizer.learning_rate", [1e-3, 3e-3]))
