"""Do experts help at equal active parameters, and which way of keeping them busy is best?

Command:  python -m experiments.sweep --config=configs/moe.py --workdir=runs/moe
Time:     under two minutes on two free cores by the listing's estimate, without compilation; run on one shared core
Finding:  undecided at this size and length of training (307 thousand tokens): dense 3.263 ± 0.154 bits per byte,
          experts with a balance loss 3.266 ± 0.196, with a bias instead 3.272 ± 0.113. The lower rate is best for every
          arm, at the edge of the grid. At the end the worst expert has 1.3 to 1.5 times the mean load under the loss,
          1.8 to 2.5 times under the bias (whose steps of 0.001 are small for so short a training).
"""

import ml_collections

from experiments.grid import axis, chain, point, product


def get_config() -> ml_collections.ConfigDict:
    """Three layers of attention, each with a channel sublayer in which a token meets 256 hidden units.

    They are one MLP, or 2 of 8 experts of 128: three and a half times the parameters, and the same for one token but
    for the router. The loss keeps the experts busy in one arm, in the other a bias in the choice alone.
    """
    return ml_collections.ConfigDict(
        {
            "model": {
                "pattern": "(A-)3",
                "d_model": 64,
                "n_heads": 4,
                "d_ff": 256,
                "moe": {"n_experts": 8, "top_k": 2, "d_ff": 128},
            },
            "data": {"source": "shakespeare", "seq_len": 128, "batch_size": 8},
            "optimizer": {"learning_rate": 3e-3, "weight_decay": 0.1, "schedule": "cosine", "warmup_steps": 30},
            "train": {"steps": 300},
            "evaluate": {"every": 150, "sequences": 128},
            "checkpoint": {"every": 150},
            "study": {"name": "moe", "seeds": 3, "baseline": "dense"},
            "seed": 0,
        }
    )


def sweep() -> list[dict]:
    """A dense MLP and experts kept busy in two ways; the better of two rates is confirmed with three seeds."""
    arms = chain(
        point({"arm": "dense", "model.pattern": "(A-)3"}),
        point({"arm": "2 of 8, balance loss", "model.pattern": "(AE)3", "model.moe.balance_loss": 0.01}),
        point(
            {
                "arm": "2 of 8, bias without a loss",
                "model.pattern": "(AE)3",
                "model.moe.gate": "sigmoid",
                "model.moe.balance_loss": 0.0,
                "model.moe.bias_rate": 1e-3,
            }
        ),
    )
    return product(arms, axis("optimizer.learning_rate", [3e-3, 1e-2]))
