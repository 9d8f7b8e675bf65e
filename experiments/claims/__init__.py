"""Published claims, and the studies that try them here. One file a claim, or a close family; the table.

python -m experiments.reproduce --list
"""

from __future__ import annotations

from experiments.claims import exact, induction, mad, recall, text
from experiments.claims.claim import Claim

FILES = (exact, recall, induction, mad, text)
CLAIMS: dict[str, Claim] = {claim.name: claim for file in FILES for claim in file.CLAIMS}
"""Name -> claim, in the order of the list."""
