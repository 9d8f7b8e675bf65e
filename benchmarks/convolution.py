"""Suite `convolution`: Hyena's long convolution and a model of it against torch.fft, and a million tokens in memory."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

from benchmarks import machine, peers
from benchmarks.measure import paired
from benchmarks.rows import Row, faster, of_limit

ENVIRONMENT = {"NPROC": "2"}

CHANNELS = 128
LONG, MILLION = 65_536, 1_048_576
SHORTER = (1024, 8192)

WHY = "XLA's FFT (DUCC) takes 1.5 to 2 times as long as MKL's"
PASSES = "a transform goes over its data many times and does few operations on each number"


def operator() -> Iterator[Row]:
    """One convolution of (1, 128, length)."""
    import jax
    import jax.numpy as jnp

    from hybrid.ops.fftconv import fft_conv, transform_size

    for length in (*SHORTER, LONG):
        u, kernel = (
            jax.random.normal(jax.random.key(i), shape) for i, shape in enumerate(((1, 128, length), (128, length)))
        )
        forward = jax.jit(lambda u, k: fft_conv(u, k))
        gradient = jax.jit(jax.grad(lambda u, k: (0.5 * jnp.square(fft_conv(u, k))).sum(), argnums=(0, 1)))
        work: dict[str, Callable[[], object]] = {
            "forward": functools.partial(_wait, forward, u, kernel),
            "forward+backward": functools.partial(_wait, gradient, u, kernel),
        }
        if peers.there():
            from benchmarks.peers_convolution import convolution

            work["torch forward"], work["torch forward+backward"] = convolution(CHANNELS, length)
        times = paired(work, rounds=7 if length == LONG else 11)
        for name in ("forward", "forward+backward"):
            title = f"FFT convolution, {CHANNELS} channels, L {length:,}, {name}"
            if peers.there():
                yield faster(title, "torch.fft (MKL)", times[name], times[f"torch {name}"], note=WHY)
        n = transform_size(2 * length)
        flops = 3 * CHANNELS * 2.5 * n * (n.bit_length() - 1)
        limit = "FLOPs of 3 real transforms over the rate of matrix products"
        yield of_limit(f"FFT convolution, {CHANNELS} channels, L {length:,}, forward", limit, times["forward"],
                       flops / machine.matmul_rate(), note=PASSES)  # fmt: skip


def model(length: int, remat: str = "none") -> Any:
    """The ModelConfig that benchmarks/peers_convolution.py has in torch."""
    from benchmarks.peers_convolution import LAYERS, VOCAB, WIDTH
    from hybrid.config import ModelConfig

    return ModelConfig(
        pattern="H-" * LAYERS, vocab_size=VOCAB, d_model=WIDTH, d_ff=4 * WIDTH, norm="layernorm", positions="none",
        mlp={"activation": "gelu_tanh", "bias": True}, hyena={"filter_length": length}, remat=remat,
    )  # fmt: skip


def block() -> Iterator[Row]:
    """Loss and gradients of a model of two layers, width 128."""
    import jax

    from hybrid.memory import lowered, of_compiled
    from hybrid.params import init

    config = model(LONG, "chunk")
    compiled = lowered("train", config, LONG).compile()
    memory = of_compiled(compiled)
    params = jax.jit(init, static_argnums=0)(config, jax.random.key(0))
    tokens = jax.random.randint(jax.random.key(1), (1, LONG), 0, config.vocab_size)
    title = f"Hyena, 2 layers, d 128, L {LONG:,}, forward+backward"
    work: dict[str, Callable[[], object]] = {"ours": functools.partial(_wait, compiled, params, tokens)}
    if not peers.there():
        times = paired(work, rounds=5)
        yield Row(title, "", times["ours"].ms()["wall"] / 1e3, "s", ours=times["ours"].ms())
        return
    from benchmarks.peers_convolution import step

    work["torch"] = step(LONG)
    times = paired(work, rounds=5)
    yield faster(title, "the same model in torch (MKL FFT)", times["ours"], times["torch"], bar=">= 0.77",
                 note="0.77 is 1.3 times the time")  # fmt: skip
    theirs = int(
        subprocess.run(
            [sys.executable, "-m", "benchmarks.peers_convolution", str(LONG)],
            check=True, capture_output=True, text=True, env={**os.environ, "MALLOC_ARENA_MAX": "1"},
        ).stdout
    )  # fmt: skip
    yield Row(f"{title}: arguments, results and temporaries", "the rise of torch's peak RSS in a process of its own",
              memory.peak / theirs, "x the memory", bar="<= 0.25",
              note=f"{memory.peak / 2**20:,.0f} against {theirs / 2**20:,.0f} MiB")  # fmt: skip


def million() -> Iterator[Row]:
    """What the arms of configs/million.py take, from their compiled programs; nothing of that length is run."""
    import dataclasses

    from hybrid.memory import training

    base = model(MILLION, "chunk")
    for name, pattern in (("Hyena", "H-H-"), ("Mamba", "M-M-"), ("Hyena and a window of 512", "H-S-")):
        config = dataclasses.replace(base, pattern=pattern, n_heads=2)
        memory = training(config, MILLION)
        yield Row(f"{name}, 2 layers, d 128, L {MILLION:,}, train step", "its compiled program", memory.peak / 2**30,
                  "GiB", bar="<= 12")  # fmt: skip


def _wait(function: Callable[..., Any], *arguments: Any) -> None:
    import jax

    jax.block_until_ready(function(*arguments))


FUNCTIONS = {"operator": operator, "block": block, "million": million}
