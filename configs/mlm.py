"""How much bidirectional attention does a masked language model need, if its other mixers are causal Mambas?

Command:  python -m experiments.sweep --config=configs/mlm.py --workdir=runs/mlm
Time:     four minutes on two free cores by estimate; run on one shared core
Finding:  undecided: with bidirectional attention alone 2.157 ± 0.216 nats per masked byte, with Mamba at both ends
          1.858 ± 0.202, with three Mambas 1.926 ± 0.203: each seed of the stacks with Mamba is below each of attention
          (2.07 to 2.25 against 1.79 to 2.02), and three seeds with such intervals decide nothing. Each best of two
          rates lies at an edge.
"""

import ml_collections

from experiments.grid import axis, chain, point, product


def get_config() -> ml_collections.ConfigDict:
    """Stacks of four mixers of equal size, trained with BERT's recipe under RoBERTa's dynamic masking.

    Scores are nats per masked byte, at one fixed masking of the held-out text for all arms and seeds.
    """
    return ml_collections.ConfigDict(
        {
            "model": {
                "mixers": 4,
                "base": "M",
                "insert": "B",
                "count": 0,
                "placement": "even",
                "channel": "-",
                "d_model": 64,
                "n_heads": 4,
                "match": {"parameters": 250_000, "by": "d_ff"},
            },
            "data": {
                "source": "shakespeare",
                "objective": "masked",
                "masked": {"rate": 0.15, "masking": "dynamic"},
                "seq_len": 128,
                "batch_size": 16,
            },
            "optimizer": {"learning_rate": 3e-3, "weight_decay": 0.1, "schedule": "cosine", "warmup_steps": 40},
            "train": {"steps": 300},
            "evaluate": {"every": 150, "sequences": 256},
            "checkpoint": {"every": 150},
            "study": {"name": "mlm", "seeds": 3, "baseline": "attention", "score": "loss"},
            "seed": 0,
        }
    )


def sweep() -> list[dict]:
    """All, half and one of the four mixers are attention; the better of two rates is confirmed with three seeds."""
    arms = chain(
        point({"arm": "attention", "model.base": "B"}),
        point({"arm": "mamba 1:1", "model.count": 2}),
        point({"arm": "mamba 3:1", "model.count": 1}),
    )
    return product(arms, axis("optimizer.learning_rate", [3e-3, 1e-2]))
