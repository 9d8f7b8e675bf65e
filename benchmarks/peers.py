"""What others compute, in torch: the peers of the tables (extra `parity`). Each function gives a piece of work.

Threads of torch are set to the number that jax uses; what is compiled by torch.compile is compiled before it is timed.
"""

from __future__ import annotations

from collections.abc import Callable

from experiments.environment import threads


def there() -> bool:
    """Whether torch and transformers are installed; rows against them are left out where they are not."""
    from importlib.util import find_spec

    return find_spec("torch") is not None and find_spec("transformers") is not None


def torch():
    """The module, with as many threads as jax uses."""
    import torch

    torch.set_num_threads(threads())
    return torch


def sdpa(length: int, heads: int, head_dim: int) -> tuple[Callable[[], object], Callable[[], object]]:
    """torch's scaled_dot_product_attention, causal, batch 1: forward, and forward with all gradients."""
    t = torch()
    q, k, v = (t.randn(1, heads, length, head_dim, requires_grad=True) for _ in range(3))

    def forward():
        with t.no_grad():
            return t.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)

    def gradient():
        y = t.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return t.autograd.grad(y, (q, k, v), y.detach())

    return forward, gradient
