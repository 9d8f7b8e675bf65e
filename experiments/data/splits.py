"""Which document is for training, validation and test."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from hybrid.validation import ConfigError

SPLITS = ("train", "validation", "test")
SHARE = 0.05
"""Of all bytes, at the least, for validation and as much for test, wherever the documents are small enough."""
OVERSHOOT = 1.5
"""A group of documents goes into a held-out split only while that stays below OVERSHOOT times its share."""


def split_groups(sizes: Mapping[str, int], split_seed: int, share: float = SHARE) -> dict[str, str]:
    """Group -> split, from the bytes of each group.

    Groups are taken in the order of a digest of their name and `split_seed`, so the split looks random and depends on
    no order of files. Each held-out split takes the next groups that fit, until it has its share; one that is too big
    for a held-out split is passed over and trains. Where the groups are so big that less than half the share was
    found, the smallest group left is taken instead. Fewer than three groups cannot be split: ConfigError.
    """
    if len(sizes) < len(SPLITS):
        problem = f"has {len(sizes)} documents that differ; needs at least 3 (train, validation, test are by document)"
        raise ConfigError("data.source", problem)
    order = sorted(sizes, key=lambda name: hashlib.sha256(f"{split_seed}\0{name}".encode()).digest())
    wanted = share * sum(sizes.values())
    split = dict.fromkeys(order, "train")
    for after, held_out in ((2, "validation"), (1, "test")):  # `after`: splits that still need a group of their own
        used, left = 0, [name for name in order if split[name] == "train"]
        for name in list(left):
            if used >= wanted or len(left) == after:
                break
            if used + sizes[name] <= OVERSHOOT * wanted:
                split[name], used = held_out, used + sizes[name]
                left.remove(name)
        if used < wanted / 2 and len(left) > after:
            split[min(left, key=lambda name: sizes[name])] = held_out
    return split
