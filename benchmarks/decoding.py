"""Decoding: tokens a second and bytes of state against the context, for attention, a window, Mamba and hybrids.

All models have d_model 256, 8 mixers with an MLP each, a vocabulary of 256 and the same number of parameters (by the
width of the MLPs). A context is set, not read: attention's caches are marked as filled up to it and recurrent states
are as after any number of tokens, for neither's cost depends on what was read. One compiled loop draws the likeliest
tokens; its state is donated. The figure is drawn by

    python -m benchmarks.decoding_figure
"""

from __future__ import annotations

import dataclasses
import functools
import math
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

from benchmarks import peers
from benchmarks.measure import CLOCKS, Times, paired, temporaries
from benchmarks.rows import Row, faster, of_limit

ENVIRONMENT = {"NPROC": "2"}

PATTERNS = {
    "attention": "A-" * 8,
    "window 512": "S-" * 8,
    "mamba": "M-" * 8,
    "hybrid 1:7": "M-" * 4 + "A-" + "M-" * 3,
    "hybrid 1:3": "M-" * 2 + "A-" + "M-" * 3 + "A-" + "M-",
}
CONTEXTS = (64, 256, 1024, 4096, 16384, 65536, 131072)
MOST_BYTES = 2.2 * 2**30
"""Of one state; a curve stops where it would need more."""
BUDGET = 2**30
"""Bytes of state that the largest batch may take."""
SECONDS = 0.06
"""That a piece should take, in as many tokens as fit, 3 at least."""
ROUNDS = 4


def config(pattern: str, d_ff: int = 512, **changes: Any) -> Any:
    from hybrid import ModelConfig

    return ModelConfig(
        **{
            "pattern": pattern, "vocab_size": 256, "d_model": 256, "d_ff": d_ff, "n_heads": 4,
            "mamba": {"d_state": 16}, "sliding_window": {"window": 512}, "tie_embeddings": True, **changes,
        }
    )  # fmt: skip


JAMBA = {"d_state": 16, "inner_norm": True, "inner_norm_eps": 1e-5}
"""Mamba as it stands in Jamba."""


@functools.cache
def matched(pattern: str) -> Any:
    """The config with the parameters of Mamba's, to the nearest width of the MLP."""
    from hybrid.accounting import parameters

    wanted = parameters(config(PATTERNS["mamba"])).total
    return min((config(pattern, d_ff) for d_ff in range(496, 800, 8)), key=lambda c: abs(parameters(c).total - wanted))


@functools.cache
def values(model: Any) -> Any:
    import jax

    from hybrid import init
    from hybrid.decoding.programs import unstacked

    return unstacked(jax.jit(lambda key: init(model, key))(jax.random.key(0)))


class Decoder:
    """The loop of `hybrid.generate` with a state of its own, which can be set to any context that it has room for."""

    def __init__(self, model: Any, batch: int, capacity: int):
        import jax
        import numpy as np

        from hybrid.decoding.generate import loop
        from hybrid.model import init_state

        self.params, self.capacity, self.batch = values(model), capacity, batch
        self.state = jax.jit(lambda: all_slots(init_state(model, batch, capacity)))()
        self.last = np.zeros((batch, model.vocab_size), np.float32)
        self.tail = (jax.random.key(0), np.int32(1), np.zeros(0, np.int32))
        self.program = loop.lower(
            model, self.params, self.last, self.state, *self.tail, 1024, 0.0, None, None
        ).compile()  # fmt: skip

    def at(self, context: int, tokens: int) -> Callable[[], None]:
        """Work: `tokens` tokens from a context on (before the end of the room)."""
        import jax
        import numpy as np

        steps = (self.tail[0], np.int32(tokens + 1), self.tail[2])  # the first is drawn from the logits given
        context = min(context, self.capacity - tokens)
        full = np.full(self.batch, context, np.int32)

        def run() -> None:
            layers = tuple(
                dataclasses.replace(layer, filled=full) if hasattr(layer, "filled") else layer
                for layer in self.state.layers
            )
            room = np.int32(self.capacity - context)
            state = dataclasses.replace(self.state, layers=layers, length=full, room=room)
            _, self.state = jax.block_until_ready(self.program(self.params, self.last, state, *steps))

        return run


def all_slots(state: Any) -> Any:
    """The state with a token in each slot of its caches; which of them are read is said by `filled`."""
    import jax.numpy as jnp

    def filled(layer: Any) -> Any:
        if not hasattr(layer, "filled"):
            return layer
        valid = jnp.ones_like(layer.valid)
        return dataclasses.replace(layer, valid=valid, positions=jnp.cumsum(valid, 1, dtype=jnp.int32) - 1)

    return dataclasses.replace(state, layers=tuple(filled(layer) for layer in state.layers))


def rooms(model: Any, batch: int = 1) -> int:
    """Tokens, a power of two up to the longest context, of which states of a batch stay below MOST_BYTES."""
    from hybrid.accounting import state_bytes

    return max(c for c in CONTEXTS if state_bytes(model, c, batch) <= MOST_BYTES)


def per_token(times: Times, tokens: int) -> Times:
    return Times(**{clock: [seconds / tokens for seconds in getattr(times, clock)] for clock in CLOCKS})


def curves(batch: int, contexts: tuple[int, ...]) -> dict[tuple[str, int], Times]:
    """(model, context) -> seconds of one token of each row. At one context the models take turns."""
    import statistics

    models = {name: matched(pattern) for name, pattern in PATTERNS.items()}
    decoders = {name: Decoder(model, batch, rooms(model, batch)) for name, model in models.items()}
    found = {}
    for context in contexts:
        there = {name: decoder for name, decoder in decoders.items() if decoder.capacity >= context}
        once = paired({name: decoder.at(context, 3) for name, decoder in there.items()}, 1)
        count = {
            name: max(3, min(64, round(SECONDS * 3 / statistics.median(t.wall)))) for name, t in once.items()
        }  # fmt: skip
        works = {name: decoder.at(context, count[name]) for name, decoder in there.items()}
        for name, times in paired(works, ROUNDS).items():
            found[name, context] = per_token(times, count[name])
    return found


def size(nbytes: float) -> str:
    return f"{nbytes / 2**20:,.2f} MiB"


def label(context: int) -> str:
    return f"{context // 1024}k" if context >= 1024 else str(context)


def against_context() -> Iterator[Row]:
    """Milliseconds a token, tokens a second and bytes of state, at batch 1 and 8, and where curves cross."""
    from hybrid.accounting import parameters, state_bytes

    for batch, contexts in ((1, CONTEXTS), (8, (1024, 4096, 16384))):
        found = curves(batch, contexts)
        for (name, context), times in found.items():
            model = matched(PATTERNS[name])
            ms = times.ms()
            held = size(state_bytes(model, context, batch))
            note = f"{parameters(model).total / 1e6:.2f} M parameters" if context == contexts[0] else ""
            work = f"decode, {name}, batch {batch}, context {label(context)}, state {held}"
            yield Row(work, "", batch * 1e3 / ms["wall"], "tokens/s", ours=ms, note=note)
        if batch == 1:
            yield from crossovers(found)


def flatness(decoder: Decoder) -> Iterator[Row]:
    """Contexts take turns, by the clock of the busiest thread: the program is the same, and by the wall's clock one
    context entered twice differed by a third from itself on a machine that others used."""
    times = paired({str(context): decoder.at(context, 16) for context in CONTEXTS}, 61)
    seconds = [each.ms()["busiest"] for each in times.values()]
    yield Row(
        "decode, mamba, batch 1, slowest over fastest context from 64 to 128k", "", max(seconds) / min(seconds),
        "x", "<= 1.1", note="one program and one size of state; contexts take turns; medians of the busiest thread",
    )  # fmt: skip


def crossovers(found: dict[tuple[str, int], Times]) -> Iterator[Row]:
    """Contexts from which on a model is faster, or its state smaller, than attention's."""
    from hybrid.accounting import state_bytes

    models = {name: matched(pattern) for name, pattern in PATTERNS.items()}
    for name in PATTERNS:
        if name == "attention":
            continue
        contexts = [c for c in CONTEXTS if ("attention", c) in found and (name, c) in found]
        ours, theirs = ([found[n, c].ms()["wall"] for c in contexts] for n in (name, "attention"))
        where = crossing(contexts, ours, theirs)
        note = "" if where else f"faster at all contexts from {contexts[0]} on" if ours[0] < theirs[0] else "never"
        yield Row(f"decode, {name}: faster than attention from", "", where or contexts[0], "tokens", note=note)
        smaller = next(
            (c for c in range(1, 4096) if state_bytes(models[name], c) < state_bytes(models["attention"], c)), 0
        )  # fmt: skip
        yield Row(f"decode, {name}: state smaller than attention's from", "", smaller, "tokens")


def crossing(contexts: list[int], ours: list[float], theirs: list[float]) -> float | None:
    """Where the first curve goes below the second for good, straight lines between logarithms; None: nowhere inside."""
    gaps = [math.log(a / b) for a, b in zip(ours, theirs, strict=True)]
    for i in range(len(gaps) - 1, 0, -1):
        if gaps[i] < 0 <= gaps[i - 1]:
            low, high = math.log(contexts[i - 1]), math.log(contexts[i])
            return math.exp(low + (high - low) * gaps[i - 1] / (gaps[i - 1] - gaps[i]))
        if gaps[i] >= 0:
            return None
    return None


def largest_batch() -> Iterator[Row]:
    """Tokens a second of all rows that fit in BUDGET bytes of state."""
    from hybrid.accounting import state_bytes

    for context in (1024, 8192, 131072):
        decoders = {}
        for name, pattern in PATTERNS.items():
            batch = BUDGET // state_bytes(matched(pattern), context)
            if context == 8192 and batch:
                decoders[name] = Decoder(matched(pattern), min(batch, 2048), context)
            elif context != 8192:
                yield Row(f"largest batch in 1 GiB of state, {name}, context {label(context)}", "", batch, "rows")
        if not decoders:
            continue
        times = paired({name: decoder.at(context, 3) for name, decoder in decoders.items()}, 3)
        for name, decoder in decoders.items():
            ms = per_token(times[name], 3).ms()
            batch = BUDGET // state_bytes(matched(PATTERNS[name]), context)
            capped = f"; timed at {decoder.batch}" if batch != decoder.batch else ""
            work = f"decode, {name}, context {label(context)}, largest batch in 1 GiB of state: {batch}{capped}"
            yield Row(work, "", decoder.batch * 1e3 / ms["wall"], "tokens/s", ours=ms)


def limits() -> Iterator[Row]:
    """One token of Mamba against the time in which its weights are read; temporaries of the hybrid's step."""
    from benchmarks.machine import read_bandwidth
    from hybrid.accounting import parameters

    model = matched(PATTERNS["mamba"])
    decoder = Decoder(model, 1, 131072)
    work = {f"{context}": decoder.at(context, 64) for context in (64, 131072 - 64)}
    times = {name: per_token(each, 64) for name, each in paired(work, 9).items()}
    seconds = 4 * parameters(model).total / read_bandwidth()
    note = "the state is marked as read up to the context; what it holds is not a prompt's"
    for context, each in times.items():
        words = f"decode, mamba, {parameters(model).total / 1e6:.1f} M parameters, batch 1, context {context}"
        yield of_limit(words, "weights over measured bandwidth", each, seconds, bar="<= 1.5", note=note)
    yield from flatness(decoder)
    hybrid = Decoder(config(PATTERNS["hybrid 1:7"]), 1, 8192)
    yield Row("decode, hybrid 1:7, temporaries at capacity 8192", "", temporaries(hybrid.program), "MiB", "<= 1")


def against_transformers() -> Iterator[Row]:
    """The same weights in transformers, both by their public `generate`, the prompt's share taken away."""
    if not peers.there():
        return
    import jax.numpy as jnp
    import numpy as np

    from benchmarks import peers_decoding
    from hybrid import generate
    from hybrid.accounting import parameters

    cases = {
        "hybrid 1:7": (config(PATTERNS["hybrid 1:7"], positions="none", mamba=JAMBA), "jamba"),
        "mamba": (config("M" * 15, d_ff=1024, positions="none"), "mamba"),  # no MLP: its d_ff is the family's word
        "attention": (config(PATTERNS["attention"]), "llama"),
    }
    bars = {"hybrid 1:7": ">= 3"}
    few, many = 33, 64  # one program makes both
    for name, (model, family) in cases.items():
        params = values(model)
        with tempfile.TemporaryDirectory() as folder:
            theirs = peers_decoding.load(model, params, folder + "/model", family)
        for batch, length in ((1, 64), (8, 64), (1, 1024)) if name == "attention" else ((1, 64), (8, 64)):
            prompt = np.random.default_rng(length).integers(0, 256, (batch, length))
            tokens = jnp.asarray(prompt, jnp.int32)

            def ours(steps: int, model: Any = model, params: Any = params, tokens: Any = tokens) -> Any:
                return np.asarray(generate(model, params, tokens, steps))

            work = {
                "ours few": functools.partial(ours, few),
                "theirs few": functools.partial(peers_decoding.generate, theirs, prompt, few),
                "ours": functools.partial(ours, many),
                "theirs": functools.partial(peers_decoding.generate, theirs, prompt, many),
            }
            same = (work["ours"]() == work["theirs"]()).mean()
            times = paired(work, ROUNDS)
            mine, other = (
                per_token(difference(times[side], times[f"{side} few"]), many - few) for side in ("ours", "theirs")
            )
            yield faster(
                f"decode, {name}, {parameters(model).total / 1e6:.1f} M parameters, batch {batch}, prompt {length}",
                f"transformers' {family} generate, the same weights", mine, other,
                bars.get(name, "") if batch == 1 else "",
                note=f"{many} tokens less {few}, over {many - few}; {same:.0%} of the tokens are the same",
            )  # fmt: skip


def difference(long: Times, short: Times) -> Times:
    """Round by round."""
    return Times(
        **{clock: [a - b for a, b in zip(getattr(long, clock), getattr(short, clock), strict=True)] for clock in CLOCKS}
    )


FUNCTIONS = {
    "limits": limits,
    "context": against_context,
    "largest_batch": largest_batch,
    "transformers": against_transformers,
}
