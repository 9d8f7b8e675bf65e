"""One recurrent layer, or a window of twice the size? Both take about the same time a step.

Command:  python -m experiments.sweep --config=configs/block_recurrent.py --workdir=runs/block_recurrent
Time:     under three minutes on two free cores by the listing's estimate; run on one shared core. Tokens a second in
          training, medians: 15.3 thousand for the window of 32, 13.7 for 64, 13.6 with the fixed gate, 13.3 with the
          LSTM gate
Finding:  undecided against the window of 64: the recurrent stacks are ahead by 0.050 ± 0.113 (fixed gate, 3.381) and
          0.076 ± 0.111 bits per byte (LSTM gate, 3.355), and 4 to 9 more seeds would decide differences of that size.
          At this length of training a longer reach is no help: the window of 32 is better than that of 64 (3.309
          against 3.431, p = 0.02). The lower of two rates is best for every arm, at the edge of the grid.
"""

import ml_collections

from experiments.grid import axis, chain, point, product


def get_config() -> ml_collections.ConfigDict:
    """Four layers of windows; in the recurrent ones the third carries 16 states (Hutchins et al. 2022: 10 of 12)."""
    return ml_collections.ConfigDict(
        {
            "model": {
                "pattern": "(S-)4",
                "d_model": 64,
                "n_heads": 4,
                "sliding_window": {"window": 32},
                "block_recurrent": {"window": 32, "n_states": 16, "gate": "fixed", "form": "skip"},
                "match": {"parameters": 320_000, "by": "d_ff"},
            },
            "data": {"source": "shakespeare", "seq_len": 512, "batch_size": 2},
            "optimizer": {"learning_rate": 3e-3, "weight_decay": 0.1, "schedule": "cosine", "warmup_steps": 30},
            "train": {"steps": 250},
            "evaluate": {"every": 125, "sequences": 32},
            "checkpoint": {"every": 125},
            "study": {"name": "block_recurrent", "seeds": 3, "baseline": "window of 64"},
            "seed": 0,
        }
    )


def sweep() -> list[dict]:
    """Every arm at two learning rates; the better one on validation is confirmed with three seeds."""
    arms = chain(
        point({"arm": "window of 32", "model.sliding_window.window": 32}),
        point({"arm": "window of 64", "model.sliding_window.window": 64}),
        point({"arm": "recurrent, fixed gate", "model.pattern": "S-S-R-S-", "model.block_recurrent.gate": "fixed"}),
        point({"arm": "recurrent, LSTM gate", "model.pattern": "S-S-R-S-", "model.block_recurrent.gate": "lstm"}),
    )
    return product(arms, axis("optimizer.learning_rate", [3e-3, 1e-2]))
