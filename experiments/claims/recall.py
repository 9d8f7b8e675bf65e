"""Synthetic tasks: where architectures part. Sizes are those of two CPU cores; `gpu` is larger.

Scores are accuracies. A claim that was published as a number is tried as an order, because the protocol is reduced.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from experiments.claims.claim import FAILED, LEARNT, Claim, Finding, Scale, level, longer, orders

if TYPE_CHECKING:
    from experiments.results import Results


def _wider(width: int, heads: int, parameters: int, steps: int, *more: str) -> tuple[str, ...]:
    sizes = (f"--config.model.d_model={width}", f"--config.model.n_heads={heads}", "--config.model.mamba.d_state=16")
    return (*sizes, f"--config.model.match.parameters={parameters}", f"--config.train.steps={steps}", *more)


SMALL = "width 64; 4 pairs in {} tokens, vocabulary 64, Mamba with a state of 4 a channel"
LONGER = ("--config.data.seq_len=256", "--config.data.task.num_kv_pairs=48", "--config.data.task.vocab_size=8192")


# --- one layer --------------------------------------------------------------------------------------------------------


def sharp_four(results: Results) -> list[Finding]:
    convolved, bare = "convolution, attention", "mamba without convolution"
    return [
        level(results, convolved, "0.99", LEARNT, math.inf),
        level(results, bare, "0.02", -math.inf, FAILED),
        *orders(results, [(convolved, "attention", "one layer of attention fails, with a convolution it does not"),
                          ("mamba", bare, "Mamba solves it, without its convolution it does not")]),
    ]  # fmt: skip


# --- figure 2 of Zoology ----------------------------------------------------------------------------------------------


def zoology(results: Results) -> list[Finding]:
    numbers = {"hyena": ("0.52", "0.75"), "short convolution": ("0.70", "0.95")}
    pairs = []
    for name, (narrow, wide) in numbers.items():
        pairs += [("attention 64", f"{name} 64", f"1.00 and {narrow}")]
        pairs += [(f"{name} 128", f"{name} 64", f"{wide} and {narrow}")]
    return [level(results, "attention 64", "1.00", LEARNT, math.inf), *orders(results, pairs)]


# --- ratio, depth, placement ------------------------------------------------------------------------------------------


def ratio(results: Results) -> list[Finding]:
    some = "recall rises with attention"
    return [
        *orders(results, [("1/4", "none", some), ("1/2", "none", some), ("all", "none", some)]),
        level(results, "1/4", "a few layers are enough", LEARNT, math.inf),
    ]


def depth(results: Results) -> list[Finding]:
    some = "one layer of eight is enough (Jamba 1:7)"
    return [
        *orders(results, [("1/8", "none", some), ("1/4", "none", "recall rises with attention")]),
        level(results, "1/8", some, LEARNT, math.inf),
    ]


def placement(results: Results) -> list[Finding]:
    return orders(results, [(place, "first", "attention first is worst") for place in ("even", "middle", "last")])


# --- in context -------------------------------------------------------------------------------------------------------


def few_shot(results: Results) -> list[Finding]:
    better = "IMDB 84 to 91 with attention, 49 without"
    return orders(results, [(arm, "mamba", better) for arm in ("1:7", "1:3", "attention")])


def no_positions(results: Results) -> list[Finding]:
    pairs = [
        ("mamba first, none", "attention, rope", "no positions are needed after a Mamba"),
        ("attention, rope", "attention, none", "attention alone needs them"),
    ]
    return orders(results, pairs)


def copying(results: Results) -> list[Finding]:
    pairs = [
        ("all selective", "none selective", "99.8 and 56.4"),
        ("all selective", "hyena", "99.8 and 28.4"),
        ("dt", "none selective", "of perplexity: dt 9.81, none 10.93"),
        ("dt", "B", "of perplexity: dt 9.81, B 10.15"),
        ("dt", "C", "of perplexity: dt 9.81, C 9.98"),
    ]
    return [level(results, "all selective", "0.998", LEARNT, math.inf), *orders(results, pairs)]


# --- the table --------------------------------------------------------------------------------------------------------

CLAIMS = (
    Claim(
        name="sharp-four",
        about="Which part of one layer does recall?",
        source="Okpekpe & Orvieto 2025 (2508.19029)",
        published="99 % for attention behind a short convolution, 2 % for Mamba without its convolution",
        agreement=f"at least {LEARNT} and at most {FAILED}; attention and Mamba better with the convolution (sign)",
        judge=sharp_four,
        scales={
            "cpu": Scale(
                "configs/claims/sharp_four.py", minutes=12, reduced="4 pairs in 64 tokens, vocabulary 64, not 8192"
            ),
            "gpu": Scale("configs/claims/sharp_four.py", longer(10_000, *LONGER), reduced="width 64, 256 tokens"),
        },
    ),
    Claim(
        name="zoology-mqar",
        about="Which mixers recall four pairs in 64 tokens?",
        source="Arora et al. 2024 (Zoology), figure 2, read off the figure (± 0.03; reruns differ by ± 0.25)",
        published="attention 1.00; Hyena 0.52 and 0.75, convolutions 0.70 and 0.95 at width 64 and 128",
        agreement="attention at least 0.9; each of the others below it at width 64, and better at 128 (sign)",
        judge=zoology,
        scales={
            "cpu": Scale(
                "configs/claims/zoology_mqar.py",
                minutes=30,
                reduced="vocabulary 64 instead of 8192, 20,000 rows instead of 100,000, 8 epochs instead of 64, "
                "two rates instead of four, batch 64",
            ),
            "gpu": Scale(
                "configs/claims/zoology_mqar.py",
                ("--config.data.task.vocab_size=8192", "--config.data.examples=100000", "--config.data.batch_size=512",
                 "--config.train.steps=12544"),
                reduced="two widths instead of four, two rates instead of four",
            ),
        },
        full_cost="448 runs on 8 A100",
    ),
    Claim(
        name="recall-ratio",
        about="How much attention does recall need?",
        source="Wang et al. 2025 (2507.06457); Dao & Gu 2024; Lieber et al. 2024",
        published="recall rises with attention, and a few layers are enough",
        agreement=f"1/4, 1/2 and all above none (sign); 1/4 reaches {LEARNT}",
        judge=ratio,
        scales={
            "cpu": Scale("configs/claims/recall_ratio.py", minutes=32, reduced=f"4 mixers, {SMALL.format(64)}"),
            "gpu": Scale(
                "configs/claims/recall_ratio.py", _wider(128, 8, 1_500_000, 8_000, *LONGER),
                reduced="4 mixers of width 128; 48 pairs in 256 tokens",
            ),
        },
    ),
    Claim(
        name="recall-depth",
        about="Is it the share of attention, or the count? (Compare 1/8 of 8 with 1/4 of 4 in recall-ratio.)",
        source="Lieber et al. 2024 (Jamba), section 6.2: one attention layer in eight is enough",
        published="hybrids learn in context with 1 of 8 layers attention",
        agreement=f"1/8 and 1/4 above none (sign); 1/8 reaches {LEARNT}",
        judge=depth,
        scales={
            "cpu": Scale("configs/claims/recall_depth.py", minutes=18, reduced=f"8 mixers, {SMALL.format(32)}"),
            "gpu": Scale(
                "configs/claims/recall_depth.py", _wider(128, 8, 3_000_000, 8_000, *LONGER),
                reduced="8 mixers of width 128; 48 pairs in 256 tokens",
            ),
        },
    ),
    Claim(
        name="recall-placement",
        about="Where should the one attention layer stand for recall?",
        source="Dao & Gu 2024 (Mamba-2), section 9.2; Bae et al. 2025 (2510.04800)",
        published="not first; middle and even are best",
        agreement="even, middle and last above first (sign)",
        judge=placement,
        scales={
            "cpu": Scale(
                "configs/claims/recall_placement.py", minutes=21, reduced=f"recall alone; 4 mixers, {SMALL.format(64)}"
            )
        },
    ),
    Claim(
        name="few-shot",
        about="Can a stack learn a map from its prompt?",
        source="Lieber et al. 2024 (Jamba), section 6.2 and table 6",
        published="IMDB: attention 84.1, Mamba 48.8 (answers in the wrong form), Jamba 90.9",
        agreement="1:7, 1:3 and attention above Mamba (sign); the share of valid answers stands in the table of runs",
        judge=few_shot,
        scales={
            "cpu": Scale(
                "configs/claims/few_shot.py", minutes=32, reduced="8 mixers of width 64 on a synthetic task, not 1.3 B"
            )
        },
        full_cost="three models of 1.3 B parameters, 250 B tokens each",
    ),
    Claim(
        name="no-positions",
        about="Does a Mamba before attention make positions unnecessary?",
        source="Lieber et al. 2024 (Jamba), section 6.5 and table 8",
        published="log-probabilities with and without rotary positions are identical",
        agreement="Mamba first without positions beats attention with them; attention without them loses (sign)",
        judge=no_positions,
        scales={"cpu": Scale("configs/positions.py", reduced="0.25 M parameters, 0.4 M bytes of Shakespeare")},
        full_cost="two models of 1.3 B parameters, 250 B tokens each",
    ),
    Claim(
        name="selective-copying",
        about="Does copying among noise need selection, and of what?",
        source="Gu & Dao 2023 (Mamba), table 1; the parts are asked of this task by us, table 7 asked perplexity",
        published="S6 99.8, S4 56.4, Hyena 28.4; perplexity: all 8.71, dt 9.81, C 9.98, B 10.15, none 10.93",
        agreement=f"all selective reaches {LEARNT}, and beats none and Hyena (sign); dt beats none, B and C (sign)",
        judge=copying,
        scales={
            "cpu": Scale(
                "configs/claims/selective_copying.py", minutes=15,
                reduced="4 of 60 tokens instead of 16 of 4096, 1,500 steps instead of 400,000",
            ),
            "gpu": Scale(
                "configs/claims/selective_copying.py",
                longer(
                    20_000, "--config.data.seq_len=1040", "--config.data.task.data_tokens=16",
                    "--config.study.seeds=3", "--config.study.tune_seeds=1",
                ),
                reduced="1024 tokens instead of 4096, 20,000 steps instead of 400,000",
            ),
        },
        full_cost="400,000 steps of 64 x 4112 tokens a run",
    ),
)  # fmt: skip
