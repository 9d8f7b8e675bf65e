"""Does an encoder need attention of its own, when every layer of the decoder attends to all that it read?

Command:  python -m experiments.sweep --config=configs/span.py --workdir=runs/span
Time:     four minutes on two free cores by estimate; run on one shared core
Finding:  no, at this size and length of training: an encoder of Mambas alone is better than one of attention, 2.609
          against 2.682 nats per token of the targets (0.072 ± 0.029, p = 0.02); a Mamba and then attention, 2.666, is
          undecided. The lower of two rates is best for every arm, at the edge of the grid.
"""

import ml_collections

from experiments.grid import axis, chain, point, product


def get_config() -> ml_collections.ConfigDict:
    """Encoder-decoders of equal size that write the spans which were cut out of a text (T5's recipe).

    Scores are nats per target token (bytes of the spans, sentinels and the end), on spans that are the same for all.
    """
    return ml_collections.ConfigDict(
        {
            "model": {
                "encoder": "(B-)2",
                "pattern": "(AX-)2",
                "d_model": 64,
                "n_heads": 4,
                "match": {"parameters": 300_000, "by": "d_ff"},
            },
            "data": {
                "source": "shakespeare",
                "objective": "span",
                "span": {"density": 0.15, "mean_length": 3.0},
                "seq_len": 128,
                "batch_size": 16,
            },
            "optimizer": {"learning_rate": 3e-3, "weight_decay": 0.1, "schedule": "cosine", "warmup_steps": 40},
            "train": {"steps": 300},
            "evaluate": {"every": 150, "sequences": 256},
            "checkpoint": {"every": 150},
            "study": {"name": "span", "seeds": 3, "baseline": "attention", "score": "loss"},
            "seed": 0,
        }
    )


def sweep() -> list[dict]:
    """Encoders of attention, of both and of causal Mambas; the better of two rates is confirmed with three seeds."""
    arms = chain(
        point({"arm": "attention", "model.encoder": "(B-)2"}),
        point({"arm": "mamba, then attention", "model.encoder": "M-B-"}),
        point({"arm": "mamba", "model.encoder": "(M-)2"}),
    )
    return product(arms, axis("optimizer.learning_rate", [3e-3, 1e-2]))
