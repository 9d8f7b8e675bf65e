"""Families held to `transformers` on fresh random weights. Needs torch and transformers (the extra `parity`).

def test_logits(tmp_path):
    parity.check_decoder(LlamaConfig(**parity.TINY, num_key_value_heads=2), tmp_path)
"""

from __future__ import annotations

import contextlib
import inspect
import logging
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import hybrid

WHY = "fresh random weights are compared with torch and transformers: pip install -e .[parity]"
torch = pytest.importorskip("torch", reason=WHY)
transformers = pytest.importorskip("transformers", reason=WHY)

TOLERANCE = 2e-4
"""Of the largest logit; float32 on both sides."""
VOCABULARY = 61
TINY = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 40}
STEPS = 32

torch.set_num_threads(1)
logging.getLogger("transformers").setLevel(logging.ERROR)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Their warnings are not ours."""
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        yield


def fresh(config: Any, seed: int = 0, kind: str = "AutoModelForCausalLM") -> Any:
    """A model of transformers in float32 with every parameter away from its initial value. kind: the class."""
    import transformers

    with quiet():
        torch.manual_seed(seed)
        made = getattr(transformers, kind)
        model = (made.from_config(config) if hasattr(made, "from_config") else made(config)).float().eval()
        for parameter in model.parameters():
            spread = 0.2 if parameter.ndim < 2 else parameter.shape[-1] ** -0.5
            parameter += spread * torch.randn(parameter.shape)
    return model


def save(model: Any, folder: Path) -> Path:
    with quiet():
        model.save_pretrained(folder)
    return folder


def difference(got: Any, wanted: Any, mask: Any = None) -> float:
    """max |got - wanted| / max |wanted| where `mask` is True."""
    got, wanted = np.asarray(got), np.asarray(wanted)
    assert got.shape == wanted.shape
    if mask is not None:
        got, wanted = got[mask], wanted[mask]
    assert np.isfinite(wanted).all() and wanted.std() > 1e-3
    return float(np.abs(got - wanted).max() / np.abs(wanted).max())


def padded(batch: int, length: int, side: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Random tokens (batch, length) and a mask that is True at real ones: row i has 3 i padded places, up to half."""
    draw = np.random.default_rng(seed)
    tokens = draw.integers(1, VOCABULARY, (batch, length))
    blank = np.minimum(3 * np.arange(batch), length // 2)
    place = np.arange(length)[None]
    mask = place >= blank[:, None] if side == "left" else place < (length - blank)[:, None]
    return tokens, mask


def theirs(model: Any, tokens: np.ndarray, mask: np.ndarray | None = None, **inputs: Any) -> np.ndarray:
    """Logits of transformers. Positions count real tokens, as its `generate` has them."""
    if mask is not None:
        inputs["attention_mask"] = torch.tensor(mask.astype(np.int64))
        if "position_ids" in inspect.signature(model.forward).parameters:
            inputs["position_ids"] = torch.tensor(np.maximum(mask.cumsum(1) - 1, 0))
    with quiet():
        out = model(torch.tensor(tokens), **{name: torch.as_tensor(value) for name, value in inputs.items()})
    return (out.logits if "logits" in out else out.last_hidden_state).float().numpy()


def greedy(model: Any, tokens: np.ndarray, mask: np.ndarray | None = None, steps: int = STEPS) -> np.ndarray:
    """The continuation that transformers gives with its cache, (batch, steps)."""
    mask = np.ones(tokens.shape, bool) if mask is None else mask
    with quiet():
        model.generation_config.eos_token_id = model.generation_config.bos_token_id = None
        out = model.generate(
            torch.tensor(tokens), attention_mask=torch.tensor(mask.astype(np.int64)), max_new_tokens=steps,
            do_sample=False, pad_token_id=0, use_cache=True,
        )  # fmt: skip
    return out[:, -steps:].numpy()


def ours_greedy(config: Any, params: Any, tokens: np.ndarray, mask: np.ndarray, steps: int = STEPS) -> np.ndarray:
    """The same from `hybrid.extend`, with a left-padded prompt."""
    extend = jax.jit(lambda params, tokens, state, padding: hybrid.extend(config, params, tokens, state, padding))
    state = hybrid.init_state(config, tokens.shape[0], tokens.shape[1] + steps)
    logits, state = extend(params, jnp.asarray(tokens), state, jnp.asarray(mask))
    found = []
    for _ in range(steps):
        token = jnp.argmax(logits[:, -1], axis=-1)[:, None]
        found.append(np.asarray(token))
        logits, state = extend(params, token, state, None)
    return np.concatenate(found, axis=1)


def check_round_trip(
    model: Any, config: Any, params: Any, folder: Path, wanted: Any, tokens: Any, **inputs: Any
) -> float:
    """Written by us, in shards, read by transformers without a tensor missing or left over: the same logits."""
    hybrid.to_huggingface(config, params, folder, family=model.config.model_type, max_shard_bytes=30_000)
    with quiet():
        back, info = type(model).from_pretrained(folder, output_loading_info=True)
    info["missing_keys"] = {name for name in info["missing_keys"] if not name.startswith("pooler.")}
    assert not any(info.values()), info
    found = difference(theirs(back.eval(), tokens, **inputs), wanted)
    assert found <= TOLERANCE, f"after a round trip: {found:.2e}"
    return found


def check_decoder(
    config: Any,
    folder: Path,
    seed: int = 0,
    length: int = 19,
    batch: int = 3,
    left: bool = True,
    change: Callable[..., Any] | None = None,
) -> float:
    """All that a causal model of transformers is held to; gives the largest relative difference of logits.

    Logits of a row without padding, of batches with right and left padding, a greedy continuation with the cache from
    left-padded prompts, and a round trip. length: of the batches; the row is shorter by 4. left: False where theirs
    leaves a trace of left padding; prompts then have none. change: what is done to the model before.
    """
    model = fresh(config, seed)
    if change is not None:
        change(model)
    ours, params = hybrid.from_huggingface(save(model, folder / "theirs"))
    apply = jax.jit(lambda params, tokens, padding: hybrid.apply(ours, params, tokens, padding=padding))
    tokens, mask = padded(1, length - 4, "right", seed)
    found = {"one row": difference(apply(params, tokens, None), theirs(model, tokens))}
    for side in ("right", "left") if left else ("right",):
        tokens, mask = padded(batch, length, side, seed)
        found[f"{side} padding"] = difference(apply(params, tokens, mask), theirs(model, tokens, mask), mask)
    assert max(found.values()) <= TOLERANCE, found
    mask = mask if left else np.ones_like(mask)
    np.testing.assert_array_equal(ours_greedy(ours, params, tokens, mask), greedy(model, tokens, mask))
    wanted = theirs(model, tokens[:1])
    found["round trip"] = check_round_trip(model, ours, params, folder / "ours", wanted, tokens[:1])
    print(f"{config.model_type}: max |difference| / max |logit| = {max(found.values()):.1e}")
    return max(found.values())


def check_whole_and_in_steps(
    config: Any,
    folder: Path,
    seed: int = 0,
    length: int = 19,
    batch: int = 3,
    change: Callable[..., Any] | None = None,
) -> float:
    """Where theirs has a fault in padding or with the cache: ours, padded, whole or token by token, gives what theirs
    gives for each row alone and whole. The largest relative difference."""
    model = fresh(config, seed)
    if change is not None:
        change(model)
    ours, params = hybrid.from_huggingface(save(model, folder))
    tokens, mask = padded(batch, length, "left", seed)
    wanted = np.zeros((*tokens.shape, VOCABULARY), np.float32)
    for row, real in enumerate(mask):
        wanted[row, real] = theirs(model, tokens[row : row + 1, real])[0]
    apply = jax.jit(lambda params, tokens, padding: hybrid.apply(ours, params, tokens, padding=padding))
    extend = jax.jit(lambda params, tokens, state, padding: hybrid.extend(ours, params, tokens, state, padding))
    state, cut, parts = hybrid.init_state(ours, batch, length), length - 4, []
    for start, end in ((0, cut), *((t, t + 1) for t in range(cut, length))):
        padding = jnp.asarray(mask[:, :cut]) if start == 0 else None
        logits, state = extend(params, jnp.asarray(tokens[:, start:end]), state, padding)
        parts.append(logits)
    found = {
        "whole": difference(apply(params, tokens, mask), wanted, mask),
        "in steps": difference(jnp.concatenate(parts, axis=1), wanted, mask),
    }
    assert max(found.values()) <= TOLERANCE, found
    return max(found.values())


def check_encoder(config: Any, folder: Path, kind: str, seed: int = 0, length: int = 19, batch: int = 3) -> float:
    """An encoder with its head (logits) or without one (hidden states), of the class `kind`: padding on both sides,
    token types, a round trip."""
    model = fresh(config, seed, kind)
    ours, params = hybrid.from_huggingface(save(model, folder / "theirs"))
    run = hybrid.apply if "MaskedLM" in kind else lambda *args, **options: hybrid.forward(*args, **options)[0]
    apply = jax.jit(lambda params, tokens, **inputs: run(ours, params, tokens, **inputs))
    found = {}
    types = np.random.default_rng(seed).integers(0, config.type_vocab_size, (batch, length))
    for side in ("right", "left"):
        tokens, mask = padded(batch, length, side, seed)
        wanted = theirs(model, tokens, mask, token_type_ids=types)
        found[f"{side} padding"] = difference(apply(params, tokens, padding=mask, token_types=types), wanted, mask)
    tokens = tokens[:1, :-4]
    found["one row"] = difference(apply(params, tokens), theirs(model, tokens))
    found["round trip"] = check_round_trip(model, ours, params, folder / "ours", theirs(model, tokens), tokens)
    assert max(found.values()) <= TOLERANCE, found
    print(f"{kind}: max |difference| / max |logit| = {max(found.values()):.1e}")
    return max(found.values())


def check_encoder_decoder(
    config: Any, folder: Path, seed: int = 0, length: int = 23, batch: int = 3, change: Callable[..., Any] | None = None
) -> float:
    """An encoder-decoder: logits with padding on both sides of the encoder's rows, a greedy continuation with the cache
    from a padded batch, a round trip. change: what is done to the model before."""
    model = fresh(config, seed, "AutoModelForSeq2SeqLM")
    if change is not None:
        change(model)
    ours, params = hybrid.from_huggingface(save(model, folder / "theirs"))
    apply = jax.jit(
        lambda params, tokens, decoder, mask: hybrid.apply(ours, params, tokens, decoder_tokens=decoder, padding=mask)
    )
    found = {}
    decoder = np.random.default_rng(seed + 1).integers(1, VOCABULARY, (batch, length - 6))
    for side in ("right", "left"):
        tokens, mask = padded(batch, length, side, seed)
        wanted = theirs(model, tokens, mask, decoder_input_ids=decoder)
        found[f"{side} padding"] = difference(apply(params, tokens, decoder, mask), wanted)
    rows = {"decoder_input_ids": decoder[:1]}
    wanted = theirs(model, tokens[:1], **rows)
    found["one row"] = difference(apply(params, tokens[:1], decoder[:1], None), wanted)
    found["round trip"] = check_round_trip(model, ours, params, folder / "ours", wanted, tokens[:1], **rows)
    assert max(found.values()) <= TOLERANCE, found
    tokens, mask = padded(batch, length, "right", seed)
    np.testing.assert_array_equal(ours_translation(ours, params, tokens, mask), greedy(model, tokens, mask))
    print(f"{config.model_type}: max |difference| / max |logit| = {max(found.values()):.1e}")
    return max(found.values())


def ours_translation(config: Any, params: Any, tokens: np.ndarray, mask: np.ndarray, steps: int = STEPS) -> np.ndarray:
    """The greedy continuation of the decoder's first token, 0, with the memory's keys and values computed once."""
    memory = hybrid.encode(config, params, jnp.asarray(tokens), padding=jnp.asarray(mask))
    state = hybrid.init_state(
        config, tokens.shape[0], steps, params=params, memory=memory, memory_padding=jnp.asarray(mask)
    )
    extend = jax.jit(lambda params, tokens, state: hybrid.extend(config, params, tokens, state))
    token, found = jnp.zeros((tokens.shape[0], 1), jnp.int32), []
    for _ in range(steps):
        logits, state = extend(params, token, state)
        token = jnp.argmax(logits[:, -1], axis=-1)[:, None]
        found.append(np.asarray(token))
    return np.concatenate(found, axis=1)
