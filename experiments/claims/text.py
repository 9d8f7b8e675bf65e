"""Language modelling: where attention should not stand, and how little its share matters to the loss."""

from __future__ import annotations

from typing import TYPE_CHECKING

from experiments.claims.claim import Claim, Finding, Scale, flat, noise_floor, orders

if TYPE_CHECKING:
    from experiments.results import Results

PLACES = ("1/8 even", "1/8 middle", "1/8 last")
BASIN = ("1/4 even", "1/8 even", "1/2 even")
MARGIN = 0.03
"""Bits per byte that still count as the same: 0.02 nat would be seen at this size, Mamba-2's 0.007 would not."""


def attention_first(results: Results) -> list[Finding]:
    return orders(results, [(place, "1/8 first", "attention first is worst") for place in PLACES])


def basin(results: Results) -> list[Finding]:
    found = flat(results, BASIN, "2 to 11 of 48 layers lie within 0.0072 nat", MARGIN)
    pure = [(arm, "mamba", "a little attention beats none, by 0.026 nat") for arm in BASIN[:1]]
    return found + orders(results, pure)


def floor(results: Results) -> str:
    """The noise floor in words."""
    size = noise_floor(results, BASIN)
    return "" if size is None else f"differences below {size:.3f} bits per byte are beyond this study (80 % power)"


REDUCED = (
    "8 mixers of width 64 (0.35 M parameters) instead of 48 of width 1024 (350 M); 0.8 M bytes of reviews, not 7 B "
    "tokens"
)
SCALES = {
    "cpu": Scale("configs/claims/text_placement.py", minutes=35, reduced=REDUCED),
    "gpu": Scale(
        "configs/claims/text_placement.py",
        (
            "--config.model.d_model=512", "--config.model.n_heads=8", "--config.model.match.parameters=25000000",
            "--config.data.seq_len=1024", "--config.data.batch_size=64", "--config.train.steps=1000",
            "--config.optimizer.warmup_steps=100", "--config.evaluate.every=200", "--config.checkpoint.every=500",
        ),
        reduced="8 mixers of width 512 (25 M parameters) instead of 48 of width 1024; 65 M bytes instead of 7 B tokens",
    ),
}  # fmt: skip

CLAIMS = (
    Claim(
        name="attention-first",
        about="Is the first place the worst for attention?",
        source="Dao & Gu 2024 (Mamba-2), section 9.2 and its footnote; Bae et al. 2025 (2510.04800)",
        published="not at the very beginning; spaced out, the exact place matters little",
        agreement="first is worse than even, middle and last (sign, paired over seeds, Holm)",
        judge=attention_first,
        scales=SCALES,
        full_cost="350 M parameters for 7 B tokens: about 16 hours of one H100 an arm",
    ),
    Claim(
        name="ratio-basin",
        about="Is the loss flat in the share of attention, once there is some?",
        source="Dao & Gu 2024 (Mamba-2), table 2",
        published="2 to 11 attention layers of 48 lie within 0.0072 nat; one of 48 gains 0.026 nat on none",
        agreement=f"1/8, 1/4 and 1/2 within ± {MARGIN} bits per byte (equivalence), 1/4 better than none (sign)",
        judge=basin,
        scales=SCALES,
        full_cost="350 M parameters for 7 B tokens: about 16 hours of one H100 an arm",
        floor=floor,
    ),
)
