"""MAD: six small tasks that together say which mixers will do well."""

from __future__ import annotations

from typing import TYPE_CHECKING

from experiments.claims.claim import Claim, Finding, Scale, orders

if TYPE_CHECKING:
    from experiments.results import Results


def mad(results: Results) -> list[Finding]:
    pairs = [
        ("attention", "hyena", "94.1 and 81.7"),
        ("mamba", "hyena", "90.4 and 81.7"),
        ("hyena, attention", "hyena", "striped 100, Hyena 81.7"),
    ]
    return orders(results, pairs)


CLAIMS = (
    Claim(
        name="mad-recall",
        about="Which mixers do in-context recall as MAD asks it?",
        source="Poli et al. 2024 (MAD), as Yang et al. 2024 (DeltaNet), figure 3, quotes it",
        published="in-context recall: Transformer 94.1, Hyena 81.7, Mamba 90.4, striped with attention 100",
        agreement="attention, Mamba and the striped stack above Hyena (sign)",
        judge=mad,
        scales={
            "cpu": Scale(
                "configs/claims/mad.py", reduced="one setting of one task of six, width 64 instead of 128, "
                "10 epochs of 6,400 rows instead of 200 of 12,800"
            ),
            "gpu": Scale(
                "configs/claims/mad.py",
                ("--config.train.steps=20000", "--config.model.d_model=128", "--config.model.n_heads=16",
                       "--config.data.examples=12800", "--config.data.batch_size=128"),
                reduced="the baseline setting of one task of six"
            ),
        },
        full_cost="six tasks, 55 settings, 6 runs each and arm",
    ),
)  # fmt: skip
