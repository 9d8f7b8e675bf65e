"""Can a stack learn a map from its prompt, and does it at least answer in the right form?

Command:  python -m experiments.reproduce few-shot
"""

import ml_collections

from experiments.grid import axis, chain, point, product


def get_config() -> ml_collections.ConfigDict:
    """Eight mixers with MLPs of equal size; eight examples of a map of four tokens to label words.

    The prompts come again every 100 steps: of fresh ones, of which no two are alike, one seed in three had begun to
    learn after 1,200 steps. With sixteen examples of patterns of two tokens, rows of 96 and a batch of 16, none had.
    """
    return ml_collections.ConfigDict(
        {
            "protocol": "hybrid",
            "model": {
                "mixers": 8,
                "base": "M",
                "insert": "A",
                "count": 0,
                "placement": "even",
                "channel": "-",
                "d_model": 64,
                "n_heads": 4,
                "positions": "none",
                "mamba": {"d_state": 4},
                "match": {"parameters": 280_000, "by": "d_ff"},
            },
            "data": {
                "source": "few-shot",
                "seq_len": 36,
                "batch_size": 64,
                "examples": 6_400,
                "task": {"shots": 8, "classes": 4, "pattern_length": 1, "vocab_size": 40},
            },
            "optimizer": {"learning_rate": 3e-3},
            "train": {"steps": 1500, "stop_at": 0.99},
            "study": {"name": "few_shot", "seeds": 3, "tune_seeds": 2, "baseline": "mamba"},
            "seed": 0,
        }
    )


def sweep() -> list[dict]:
    """Mamba, one attention layer in eight and in four, attention; two rates on two seeds, a third of the best."""
    arms = chain(
        point({"arm": "mamba", "model.count": 0}),
        point({"arm": "1:7", "model.count": 1}),
        point({"arm": "1:3", "model.count": 2}),
        point({"arm": "attention", "model.base": "A", "model.positions": "rope"}),
    )
    return product(arms, axis("optimizer.learning_rate", [3e-3, 6e-3]))
