"""`R` by its definition (Hutchins et al. 2022, as the authors' code computes it), which the fast form is held to."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from hybrid.lazy import jax, jnp
from hybrid.sublayers.heads import heads
from hybrid.sublayers.kind import Context
from hybrid.sublayers.recurrent_states import Params

if TYPE_CHECKING:
    from hybrid.config import ModelConfig


def reference(config: ModelConfig, params: Params, x: Any, context: Context) -> Any:
    """Window by window, token by token, head by head, with the zero keys of the window before the first written out."""
    group, (n_heads, n_kv_heads, head_dim) = config.block_recurrent, heads(config)
    (batch, length, d), width, states = x.shape, group.window, params["states"]
    real = jnp.ones((batch, length), bool) if context.padding is None else context.padding
    # One row of `place` for each number of a real token, with a one where it stands.
    place = (jnp.cumsum(real, axis=1)[:, None] - 1 == jnp.arange(length)[None, :, None]) & real[:, None]
    x = place.astype(x.dtype) @ x
    x = jnp.pad(x, ((0, 0), (0, -length % width), (0, 0)))  # up to a whole window

    def normed(v: Any, scale: Any) -> Any:
        return v / jnp.sqrt((v**2).sum(-1, keepdims=True) / d + config.norm_eps) * scale

    def head(tree: Params, name: str, h: int, x: Any) -> Any:
        v = x @ tree[name][:, h * head_dim : (h + 1) * head_dim]
        return v if name == "value" else v / jnp.sqrt((v**2).sum(-1, keepdims=True) + 1e-6)

    def softmax(scores: Any, values: Any) -> Any:
        weights = jnp.exp(scores)
        return (weights / weights.sum(-1, keepdims=True)) @ values

    def gate(tree: Params, memory: Any, hidden: Any, z: Any) -> Any:
        if group.gate == "fixed":
            kept = 1 / (1 + jnp.exp(-tree["gate_bias"]))
            return memory * kept + z * (1 - kept)
        if group.lstm_input == "paper" and group.form != "single":
            z = jnp.tanh(z)
        forget = 1 / (1 + jnp.exp(-(hidden @ tree["forget"] + tree["forget_bias"] + 1)))
        return memory * forget + z / (1 + jnp.exp(-(hidden @ tree["input"] + tree["input_bias"] - 1)))

    def changed(memory: Any, keys: list, values: list) -> Any:
        seen = normed(memory, states["norm"]) + states["ids"]
        own, read = [], []
        for h in range(n_heads):
            shared = h // (n_heads // n_kv_heads)
            scores = head(states, "query", h, seen) @ head(states, "key", shared, seen).swapaxes(1, 2)
            own.append(softmax(scores * states["scale"][h], head(states, "value", shared, seen)))
            scores = head(states, "token_query", h, seen) @ keys[shared].swapaxes(1, 2)
            read.append(softmax(scores * states["token_scale"][h], values[shared]))
        found = jnp.concatenate(own + read, axis=-1)
        if group.form == "single":
            hidden = jnp.maximum(found @ states["mlp"]["up"], 0)
            return gate(states["mlp"], memory, hidden, jnp.tanh(hidden @ states["mlp"]["down"]))
        memory = gate(states["mix"], memory, found, found @ states["mix"]["out"])
        if group.form == "skip":
            return memory
        hidden = jnp.maximum(normed(memory, states["mlp"]["norm"]) @ states["mlp"]["up"], 0)
        return gate(states["mlp"], memory, hidden, hidden @ states["mlp"]["down"])

    def bucket(distance: int) -> int:
        exact = group.relative_buckets // 2
        if distance < exact:
            return distance
        share = math.log(distance / exact) / math.log(group.relative_distance / exact)
        return min(exact + int(share * (group.relative_buckets - exact)), group.relative_buckets - 1)

    def padded(name: str, h: int) -> Any:
        """Keys or values of a window of zeros, then of all tokens."""
        v = head(params, name, h, x)
        return jnp.concatenate([jnp.zeros((batch, width, head_dim), x.dtype), v], axis=1)

    keys, values = ([padded(name, h) for h in range(n_kv_heads)] for name in ("key", "value"))
    distances = jnp.array([bucket(width - i) for i in range(width)])  # of the keys that a token sees, oldest first

    def window(memory: Any, first: Any) -> tuple[Any, Any]:
        seen = normed(memory, states["norm"]) + states["ids"]

        def token(t: Any) -> Any:
            own, read = [], []
            for h in range(n_heads):
                shared = h // (n_heads // n_kv_heads)
                before = [jax.lax.dynamic_slice_in_dim(array[shared], t, width, 1) for array in (keys, values)]
                query = head(params, "query", h, jax.lax.dynamic_slice_in_dim(x, t, 1, 1))
                scores = query @ before[0].swapaxes(1, 2) + params["relative_bias"][distances, h]
                own.append(softmax(scores * params["scale"][h], before[1]))
                query = head(params, "state_query", h, jax.lax.dynamic_slice_in_dim(x, t, 1, 1))
                scores = query @ head(states, "key", shared, seen).swapaxes(1, 2)
                read.append(softmax(scores * params["state_scale"][h], head(states, "value", shared, seen)))
            return jnp.concatenate(own + read, axis=-1)[:, 0] @ params["out"]

        outputs = jax.lax.map(token, first + jnp.arange(width))
        both = [[jax.lax.dynamic_slice_in_dim(v, first, 2 * width, 1) for v in each] for each in (keys, values)]
        return changed(memory, *both), outputs

    memory = jnp.broadcast_to(states["initial"], (batch, *states["initial"].shape))
    _, outputs = jax.lax.scan(window, memory, jnp.arange(0, length, width))
    y = outputs.reshape(-1, batch, d)[:length].swapaxes(0, 1)
    return place.swapaxes(1, 2).astype(x.dtype) @ y
