"""`python -m hybrid.testing M H --only sharding`: holds kinds (all, if none is named) to the contract."""

from __future__ import annotations

import argparse
import sys

from hybrid.sublayers import KINDS
from hybrid.testing import CHECKS, check


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m hybrid.testing", description=__doc__)
    parser.add_argument("symbols", nargs="*", metavar="SYMBOL", help=f"of {', '.join(sorted(KINDS))}; all if none")
    parser.add_argument("--only", nargs="+", choices=sorted(CHECKS), help="checks; all if left out")
    arguments = parser.parse_args()
    failed = 0
    for symbol in arguments.symbols or sorted(KINDS):
        try:
            check(symbol, only=arguments.only)
        except AssertionError as error:
            failed += 1
            print(f"FAILED {error}")
        else:
            print(f"ok {symbol}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
