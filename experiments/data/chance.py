"""Random numbers that are a function of what they are for: no state, so any row can be drawn again by itself."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from hybrid.lazy import np

if TYPE_CHECKING:
    from numpy.typing import NDArray


def uniforms(seed: int, purpose: str, rows: NDArray, count: int) -> NDArray:
    """(B, count) numbers in [0, 1), uniform; row b depends on (seed, purpose, rows[b]) alone.

    Philox (Salmon et al. 2011) keyed by seed and row. numpy promises the bits of its generators for ever, but not how
    its distributions use them; so the bits are taken.
    """
    words = hashlib.sha256(f"{seed}\0{purpose}".encode()).digest()
    key, counter = (int.from_bytes(words[at : at + 8], "little") for at in (0, 8))
    bits = [
        np.random.Philox(key=np.array([key, row], np.uint64), counter=[0, 0, 0, counter]).random_raw(count)
        for row in np.asarray(rows).astype(np.uint64)
    ]
    return (np.stack(bits) >> np.uint64(11)) * 2.0**-53
