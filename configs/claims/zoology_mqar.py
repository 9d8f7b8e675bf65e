"""Which mixers recall four pairs in 64 tokens, and how wide must they be? Figure 2 of Zoology, its smallest column.

Command:  python -m experiments.reproduce zoology-mqar
"""

import ml_collections

from experiments.grid import axis, chain, point, product


def get_config() -> ml_collections.ConfigDict:
    """The paper's protocol with a smaller vocabulary and fewer epochs; two mixers, no MLP."""
    return ml_collections.ConfigDict(
        {
            "protocol": "zoology-iclr24",
            "model": {"pattern": "AA", "d_model": 64},
            "data": {
                "source": "mqar",
                "seq_len": 64,
                "batch_size": 64,
                "examples": 10_000,
                "task": {"vocab_size": 512, "num_kv_pairs": 4},
            },
            "optimizer": {"learning_rate": 1e-3},
            "train": {"steps": 1570},
            "study": {"name": "zoology_mqar", "seeds": 3, "baseline": "attention 64"},
            "seed": 0,
        }
    )


def sweep() -> list[dict]:
    """Three mixers, two widths, three of the paper's four learning rates."""
    arms = [
        point({"arm": f"{name} {width}", "model.pattern": pattern, "model.d_model": width})
        for name, pattern in (("attention", "AA"), ("hyena", "HH"), ("short convolution", "CC"))
        for width in (64, 128)
    ]
    return product(chain(*arms), axis("optimizer.learning_rate", [4.6e-4, 2.2e-3, 1e-2]))
