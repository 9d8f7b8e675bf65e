"""The recall cell as zoology trains it, written out in torch: two layers, dense, eager, AdamW.

zoology (Arora et al. 2024) cannot be installed here; this is its model and step from its paper and its published
description: blocks of LayerNorm, mixer, residual, without MLP; learned positions for attention; the head tied to the
embedding; cross-entropy over the logits of every position, of which the unlabelled are ignored; AdamW with weight decay
0.1 and a cosine schedule; float32. What its own code does beside it (metrics, logging, its data loader) is left out,
so the real one is slower than this.

    python -m benchmarks.peers_sweeps attention 20       four rates for 20 steps each; prints the seconds of each step
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.peers import torch

VOCABULARY, WIDTH, LENGTH, PAIRS, BATCH, LAYERS = 8192, 64, 64, 4, 64, 2
RATES = (1e-4, 4.6e-4, 2.2e-3, 1e-2)


def recall(seed: int, step: int) -> dict[str, np.ndarray]:
    """A batch of multi-query associative recall: pairs of key and value, then each key again somewhere, whose label is
    its value. (B, L) tokens and (B, pairs) labels with their positions."""
    chance = np.random.default_rng([seed, step])
    half = VOCABULARY // 2
    keys = 1 + np.argsort(chance.random((BATCH, 256)), axis=1)[:, :PAIRS] * ((half - 1) // 256)
    values = chance.integers(half, VOCABULARY, (BATCH, PAIRS))
    gaps = np.argsort(chance.random((BATCH, (LENGTH - 2 * PAIRS) // 2)), axis=1)[:, :PAIRS]
    positions = 2 * PAIRS + 2 * gaps
    tokens = chance.integers(half, VOCABULARY, (BATCH, LENGTH))
    tokens[:, : 2 * PAIRS : 2], tokens[:, 1 : 2 * PAIRS : 2] = keys, values
    np.put_along_axis(tokens, positions, keys, 1)
    return {name: array.astype(np.int32) for name, array in
            {"tokens": tokens, "labels": values, "label_positions": positions}.items()}  # fmt: skip


def build(mixer: str) -> Any:
    """The model of torch."""
    t = torch()
    nn, functional = t.nn, t.nn.functional
    Module: Any = nn.Module

    class Attention(Module):
        """Dense, one head, dropout 0.1 on the weights."""

        def __init__(self) -> None:
            super().__init__()
            self.projections, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
            self.register_buffer("mask", t.full((LENGTH, LENGTH), -10000.0).triu(1))

        def forward(self, x: Any) -> Any:
            q, k, v = self.projections(x).chunk(3, -1)
            scores = t.einsum("btd,bsd->bts", q, k / math.sqrt(WIDTH)) + self.mask
            weights = functional.dropout(scores.softmax(-1), 0.1, self.training)
            return self.out(t.einsum("bts,bsd->btd", weights, v))

    class Hyena(Module):
        """Order 2: a short convolution, an implicit filter by a sine network of width 64, an FFT twice the length."""

        def __init__(self) -> None:
            super().__init__()
            self.projections, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
            self.short = nn.Conv1d(3 * WIDTH, 3 * WIDTH, 3, padding=2, groups=3 * WIDTH)
            self.network = nn.ModuleList([nn.Linear(3, 64), nn.Linear(64, 64), nn.Linear(64, 64)])
            self.last = nn.Linear(64, WIDTH, bias=False)
            self.frequency = nn.Parameter(10 * t.ones(64))
            self.bias = nn.Parameter(t.randn(WIDTH))
            place = t.linspace(0, 1, LENGTH)[:, None]
            self.register_buffer("place", t.cat([place, t.cos(2 * math.pi * place), t.sin(2 * math.pi * place)], 1))
            rates = t.linspace(math.log(1e-2) / 1.5, math.log(1e-2) / 0.3, WIDTH).abs()
            self.register_buffer("window", t.exp(-place * rates))

        def filter(self) -> Any:
            hidden = self.place
            for layer in self.network:
                hidden = t.sin(self.frequency * layer(hidden))
            return (self.last(hidden) * self.window).T

        def forward(self, x: Any) -> Any:
            parts = self.short(self.projections(x).transpose(1, 2))[..., :LENGTH]
            gate, inner, v = parts.chunk(3, 1)
            v = v * inner
            n = 2 * LENGTH
            y = t.fft.irfft(t.fft.rfft(v, n) * t.fft.rfft(self.filter(), n), n)[..., :LENGTH] + v * self.bias[:, None]
            return self.out((y * gate).transpose(1, 2))

    class Model(Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(VOCABULARY, WIDTH)
            self.positions = nn.Embedding(LENGTH, WIDTH) if mixer == "attention" else None
            self.norms = nn.ModuleList([nn.LayerNorm(WIDTH) for _ in range(LAYERS + 1)])
            self.mixers = nn.ModuleList([(Attention if mixer == "attention" else Hyena)() for _ in range(LAYERS)])
            nn.init.normal_(self.embedding.weight, std=0.02)

        def forward(self, tokens: Any) -> Any:
            x = self.embedding(tokens)
            if self.positions is not None:
                x = x + self.positions.weight
            x = functional.dropout(x, 0.1, self.training)
            for norm, mix in zip(self.norms[:-1], self.mixers, strict=True):
                x = x + mix(norm(x))
            return self.norms[-1](x) @ self.embedding.weight.T

    return Model()


def stepper(mixer: str, rate: float = 1e-3, steps: int = 1000, seed: int = 0) -> Callable[[], float]:
    """A training step, each time on the next batch."""
    t = torch()
    t.manual_seed(seed)
    model = build(mixer).train()
    optimizer = t.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.1)
    schedule = t.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps)
    at = iter(range(10**9))

    def step() -> float:
        made = recall(seed, next(at))
        labels = np.full((BATCH, LENGTH), -100, np.int64)
        np.put_along_axis(labels, made["label_positions"].astype(np.int64), made["labels"], 1)
        optimizer.zero_grad()
        logits = model(t.from_numpy(made["tokens"].astype(np.int64)))
        loss = t.nn.functional.cross_entropy(logits.reshape(-1, VOCABULARY), t.from_numpy(labels).reshape(-1))
        loss.backward()
        optimizer.step()
        schedule.step()
        return loss.item()

    return step


def column(mixer: str, steps: int) -> list[float]:
    """Seconds of each step of four rates, one after another."""
    seconds = []
    for rate in RATES:
        step = stepper(mixer, rate, steps)
        for _ in range(steps):
            begun = time.perf_counter()
            step()
            seconds.append(time.perf_counter() - begun)
    return seconds


if __name__ == "__main__":
    print(json.dumps(column(sys.argv[1], int(sys.argv[2]))))
