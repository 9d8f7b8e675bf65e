"""Can one small machine train on a million bases at once, and what does each mixer take for it?

Command:  python scripts/fetch_data.py dna
          python -m experiments.sweep --config=configs/million.py --workdir=runs/million
          with --workers=1 behind it: two runs side by side do not fit into 24 GiB
Time:     66 minutes beside other work; on two free cores a step takes 90 to 104 s (Hyena, three steps), 73 s (Mamba,
          one) and 101 s (Hyena and a window, one), the process 11.4, 6.5 and 8.8 GiB
Finding:  all three train, and in four steps none comes below the two bits of four equal bases: bits per base of another
          species 2.644 (Hyena), 2.287 (Mamba), 2.645 (Hyena and a window); one seed and one rate
"""

import ml_collections

from experiments.grid import chain, point

LENGTH = 1_048_576


def get_config() -> ml_collections.ConfigDict:
    """Two mixers of the size of HyenaDNA (width 128), one window of E. coli K-12 MG1655 a step.

    The genome is read whole, since a tenth of it is shorter than a window; two other species are held out.
    """
    return ml_collections.ConfigDict(
        {
            "model": {
                "pattern": "(H-)2",
                "d_model": 128,
                "d_ff": 512,
                "n_heads": 2,
                "mlp": {"activation": "gelu_tanh"},
                "hyena": {"filter_length": LENGTH, "decay_shift": 0.05},
                "sliding_window": {"window": 512},
                "remat": "chunk",
            },
            "data": {
                "source": "dna",
                "tokenizer": "bases",
                "dna": {
                    "genomes": ("E. coli MG1655", "H. pylori G27", "V. cholerae O395"),
                    "split": "species",
                    "validation": ("H. pylori G27",),
                    "test": ("V. cholerae O395",),
                },
                "seq_len": LENGTH,
                "batch_size": 1,
            },
            "optimizer": {"learning_rate": 3e-3, "weight_decay": 0.1, "schedule": "cosine", "warmup_steps": 1},
            "train": {"steps": 4, "log_every": 1},
            "evaluate": {"every": 4, "sequences": 1},
            "checkpoint": {"every": 4},
            "study": {"name": "million", "seeds": 1, "baseline": "hyena", "score": "bits_per_base"},
            "seed": 0,
        }
    )


def sweep() -> list[dict]:
    """Hyena, Mamba, and Hyena with a sliding window in the place of its second mixer."""
    return chain(
        point({"arm": "hyena"}),
        point({"arm": "mamba", "model.pattern": "(M-)2"}),
        point({"arm": "hyena + window", "model.pattern": "H-S-"}),
    )
