"""Attention, head and loss on two threads, float32, batch 1, 4 heads of 64: against jax.nn, torch and the machine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from benchmarks import machine, peers
from benchmarks.measure import Times, paired, temporaries
from benchmarks.rows import Row, faster, of_limit

ENVIRONMENT = {"NPROC": "2"}
HEADS, HEAD_DIM = 4, 64
LENGTH = 8192

TILES = (
    "a score is written by one product, read by the maximum, the exponential and the sum, and by the next product: "
    "these passes over tiles in the second cache level cost as much as the products"
)


def _qkv(length: int) -> tuple[Any, ...]:
    import jax

    return tuple(jax.random.normal(jax.random.key(i), (1, length, HEADS, HEAD_DIM)) for i in range(3))


def _programs(attend: Callable[..., Any], arrays: tuple[Any, ...]) -> dict[str, Any]:
    """The compiled forward pass, and it with all gradients."""
    import jax

    def both(*arrays: Any) -> Any:
        y, pull = jax.vjp(attend, *arrays)
        return pull(y)

    passes = {"forward": attend, "forward+backward": both}
    return {name: jax.jit(run).lower(*arrays).compile() for name, run in passes.items()}


def _runner(program: Any, arrays: tuple[Any, ...]) -> Callable[[], object]:
    import jax

    return lambda: jax.block_until_ready(program(*arrays))


def causal() -> Iterator[Row]:
    """The whole causal square: jax.nn makes all scores, which is why it has few rounds."""
    import jax

    from hybrid.ops.attention import attention

    arrays = _qkv(LENGTH)
    ours = _programs(attention, arrays)
    naive = _programs(lambda q, k, v: jax.nn.dot_product_attention(q, k, v, is_causal=True), arrays)
    torch = dict(zip(ours, peers.sdpa(LENGTH, HEADS, HEAD_DIM), strict=True)) if peers.there() else {}
    flops = 2 * 2 * HEADS * HEAD_DIM * LENGTH * (LENGTH + 1) / 2  # two products over half of the square
    bars = {"forward": (">= 8", ">= 0.45", 1.0), "forward+backward": (">= 10", ">= 0.55", 3.5)}
    for name, (to_jax, to_torch, products) in bars.items():
        work = f"causal attention, L {LENGTH}, {HEADS} x {HEAD_DIM}, {name}"
        run = _runner(ours[name], arrays)
        times = paired({"ours": run, "naive": _runner(naive[name], arrays)}, 3, pause=1.0, again=("ours",))
        yield faster(work, "jax.nn.dot_product_attention", times["ours"], times["naive"], to_jax)
        times = paired({"ours": run, **({"torch": torch[name]} if torch else {})}, 7)
        if torch:
            yield faster(work, "torch scaled_dot_product_attention", times["ours"], times["torch"], to_torch, TILES)
        seconds = products * flops / machine.matmul_rate()
        yield of_limit(work, "FLOPs over the matmul rate", times["ours"], seconds, note=TILES)
        yield Row(work, "temporaries", temporaries(ours[name]), "MiB", "<= 60")


def window() -> Iterator[Row]:
    """A window of 512: its cost at 32k positions over that at 8k, four times as many."""
    from hybrid.ops.attention import attention

    def attend(q: Any, k: Any, v: Any) -> Any:
        return attention(q, k, v, window=512)

    lengths = (LENGTH, 4 * LENGTH)
    arrays = {length: _qkv(length) for length in lengths}
    programs = {length: _programs(attend, arrays[length]) for length in lengths}
    for name in ("forward", "forward+backward"):
        times = paired({str(length): _runner(programs[length][name], arrays[length]) for length in lengths}, 5)
        short, long = (times[str(length)] for length in lengths)
        ratio = short.faster_than(long)
        work = f"sliding window 512, {HEADS} x {HEAD_DIM}, {name}"
        yield Row(
            f"{work}, L {lengths[1]}", f"itself at L {lengths[0]}", ratio.median, "x the cost", "<= 4.5", ratio.low,
            ratio.high, long.ms(), short.ms(),
        )  # fmt: skip
        yield Row(f"{work}, L {lengths[1]}", "temporaries", temporaries(programs[lengths[1]][name]), "MiB", "<= 250")


def loss() -> Iterator[Row]:
    """Head and cross-entropy of 2048 tokens over 50,000 words, d_model 256, forward and all gradients."""
    import jax

    from hybrid import ModelConfig
    from hybrid.losses import token_losses
    from hybrid.params import init

    words, width, tokens = 50_000, 256, 2048
    config = ModelConfig(pattern="-", vocab_size=words, d_model=width)
    params = jax.jit(lambda: init(config, jax.random.key(0)))()
    hidden = jax.random.normal(jax.random.key(1), (2, tokens // 2, width))
    labels = jax.random.randint(jax.random.key(2), (2, tokens // 2), 0, words)

    def program(form: str) -> Any:
        def mean(params: Any, hidden: Any) -> Any:
            return token_losses(config, params, hidden, labels, form=form)[0].mean()

        return jax.jit(jax.value_and_grad(mean, (0, 1))).lower(params, hidden).compile()

    programs = {form: program(form) for form in ("chunked", "plain")}
    times = paired({form: _runner(program, (params, hidden)) for form, program in programs.items()}, 5)
    work = f"head and loss, {tokens} tokens, vocabulary {words}, d_model {width}, forward+backward"
    again = "the chunks' logits are made a second time in the backward pass"
    yield faster(work, "all logits at once", times["chunked"], times["plain"], note=again)
    seconds = 3 * 2 * tokens * width * words / machine.matmul_rate()
    yield of_limit(work, "FLOPs over the matmul rate", times["chunked"], seconds, note=again)
    yield Row(work, "temporaries", temporaries(programs["chunked"]), "MiB", "<= 130")
    yield Row(f"{work}, all logits at once", "temporaries", temporaries(programs["plain"]), "MiB")


def decode() -> Iterator[Row]:
    """One token of one layer against the keys and values that it reads."""
    import jax
    import jax.numpy as jnp

    from hybrid.ops.cached_attention import cached_attention, put

    def step(q: Any, keys: Any, values: Any, filled: Any, positions: Any, valid: Any) -> Any:
        keys, values = put(keys, q[:, 0, :, :, None], filled, 3), put(values, q[:, 0, :, None], filled, 2)
        y = cached_attention(
            q, keys, values, q_positions=filled[:, None], k_positions=positions, k_valid=valid, used=filled[0] + 1
        )
        return y, keys, values

    def running(capacity: int, filled: int, times: int) -> tuple[Callable[[], object], Any]:
        q, at = jnp.ones((1, 1, HEADS, HEAD_DIM)), jnp.array([filled - 1], jnp.int32)
        caches = [jnp.ones((1, HEADS, HEAD_DIM, capacity)), jnp.ones((1, HEADS, capacity, HEAD_DIM))]
        slots = jnp.arange(capacity, dtype=jnp.int32)[None]
        rest = (at, slots, slots < filled)
        program = jax.jit(step, donate_argnums=(1, 2)).lower(q, *caches, *rest).compile()

        def run() -> None:
            for _ in range(times):
                y, *caches[:] = program(q, *caches, *rest)
            jax.block_until_ready(y)

        return run, program

    cases = {filled: max(1, 16384 // filled) for filled in (1024, LENGTH, 16 * LENGTH)}
    work = {str(filled): running(16 * LENGTH, filled, times) for filled, times in cases.items()}
    small, _ = running(2048, 1024, cases[1024])
    times = paired({"small": small, **{name: run for name, (run, _) in work.items()}}, 7)
    alone = times["1024"].faster_than(times["small"])
    yield Row(
        "attention of one token, 1,024 keys in 131,072 slots", "in 2,048 slots", alone.median, "x as fast", "",
        alone.low, alone.high, _each(times["1024"], cases[1024]).ms(), _each(times["small"], cases[1024]).ms(),
    )  # fmt: skip
    for filled, repeats in cases.items():
        name, seconds = f"attention of one token, {filled} keys", 2 * 4 * HEADS * HEAD_DIM * filled
        passes = (
            "products of queries and keys are written and read once more; calls and turns of the loop take the rest"
        )
        yield of_limit(
            name, "bytes of keys and values over the read bandwidth", _each(times[str(filled)], repeats),
            seconds / machine.read_bandwidth(), note=passes,
        )  # fmt: skip
    yield Row("attention of one token, 131072 slots", "temporaries", temporaries(work["1024"][1]), "MiB", "<= 1")


def _each(times: Times, repeats: int) -> Times:
    """Of one of the repeats of a piece of work."""
    return Times(*([seconds / repeats for seconds in clock] for clock in (times.wall, times.cpu, times.busiest)))


FUNCTIONS = {"causal": causal, "window": window, "loss": loss, "decode": decode}
