"""What does a token cost at each length: attention, a sliding window, Mamba, Mamba-2, Hyena, and a hybrid?

Command:  python -m experiments.benchmark --config=configs/lengths.py --lengths=1024,4096,16384,65536,262144,1048576
          (python -m experiments.sweep --config=configs/lengths.py --workdir=runs/lengths)
Time:     17 minutes for the curves, on two cores; the sweep was not run
Finding:  docs/performance.md: attention's prompt costs 20 to 34 times as much as the others' at 65,536 tokens, and a
          token more costs Mamba, Mamba-2 and the window the same from 1,024 to a million
"""

import ml_collections

from experiments.grid import chain, point


def get_config() -> ml_collections.ConfigDict:
    """Two mixers of width 128 with their MLPs, as in configs/million.py; the benchmark sets data.seq_len."""
    length = ml_collections.FieldReference(1024)
    return ml_collections.ConfigDict(
        {
            "model": {
                "pattern": "A-A-",
                "d_model": 128,
                "d_ff": 512,
                "n_heads": 2,
                "mlp": {"activation": "gelu_tanh"},
                "hyena": {"filter_length": length},
                "sliding_window": {"window": 512},
                "remat": "chunk",
            },
            "data": {"source": "dna", "tokenizer": "bases", "seq_len": length, "batch_size": 1},
            "optimizer": {"learning_rate": 3e-3, "weight_decay": 0.1, "schedule": "cosine", "warmup_steps": 10},
            "train": {"steps": 100},
            "evaluate": {"every": 100, "sequences": 8},
            "checkpoint": {"every": 100},
            "study": {"name": "lengths", "seeds": 1, "baseline": "attention", "score": "bits_per_base"},
            "seed": 0,
        }
    )


def sweep() -> list[dict]:
    """The hybrid is Mamba with one attention."""
    return chain(
        point({"arm": "attention"}),
        point({"arm": "window 512", "model.pattern": "S-S-"}),
        point({"arm": "mamba", "model.pattern": "M-M-"}),
        point({"arm": "mamba-2", "model.pattern": "D-D-"}),
        point({"arm": "hyena", "model.pattern": "H-H-"}),
        point({"arm": "mamba + attention", "model.pattern": "M-A-"}),
    )
