"""What others compute for a scan, in torch (extra `parity`): each function gives a piece of work, forward or with all
gradients, of the sizes and numbers that it is given. The peers' own functions are called, nothing is rewritten.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from benchmarks.peers import torch

Work = Callable[[], object]


def there() -> bool:
    """Whether mambapy is installed too."""
    from importlib.util import find_spec

    from benchmarks import peers

    return peers.there() and find_spec("mambapy") is not None


def _both(function: Callable[..., Any], tensors: list) -> tuple[Work, Work]:
    """(forward, forward and gradients) of a function of tensors that gives one tensor."""
    t = torch()

    def forward():
        with t.no_grad():
            return function(*tensors)

    def gradient():
        y = function(*tensors)
        return t.autograd.grad(y, tensors, y.detach())

    return forward, gradient


def _tensors(arrays: Mapping[str, np.ndarray], names: str) -> list:
    t = torch()
    return [t.tensor(np.asarray(arrays[name])).requires_grad_() for name in names.split()]


def associative_scan(arrays: Mapping[str, np.ndarray]) -> tuple[Work, Work]:
    """The selective scan of transformers' Mamba by torch's associative scan, which needs torch.compile.

    arrays: x, dt (batch, length, d_inner), A (d_inner, d_state), B, C (batch, length, d_state).
    """
    from transformers.models.mamba import modeling_mamba

    warnings.filterwarnings("ignore", "Dynamo detected a call", UserWarning)
    scan = _plain(modeling_mamba.mamba_selective_scan)

    def run(x, dt, A, B, C):
        return scan(x.mT, dt.mT, A, B.mT, C.mT, use_associative_scan=True)

    return _both(torch().compile(run, dynamic=False), _tensors(arrays, "x dt A B C"))


def mambapy_scan(arrays: Mapping[str, np.ndarray]) -> tuple[Work, Work]:
    """The selective scan of mambapy by its parallel scan. arrays as for `associative_scan`."""
    from mambapy.mamba import MambaBlock

    def run(x, dt, A, B, C):
        return MambaBlock.selective_scan(None, x, dt, A, B, C, x.new_zeros(x.shape[-1]))

    return _both(run, _tensors(arrays, "x dt A B C"))


def mamba2_chunk_scan(arrays: Mapping[str, np.ndarray], chunk: int) -> tuple[Work, Work]:
    """transformers' Mamba-2 in chunks. arrays: x (batch, length, heads, head_dim), dt (batch, length, heads), A
    (heads,), B, C (batch, length, groups, d_state).
    """
    from transformers.models.mamba2 import modeling_mamba2

    scan = _plain(modeling_mamba2.mamba2_chunk_scan)

    def run(x, dt, A, B, C):
        y = scan(x, dt, A, B, C, chunk)
        return y[0] if isinstance(y, tuple) else y

    return _both(run, _tensors(arrays, "x dt A B C"))


def _plain(function: Callable) -> Callable:
    """The function itself where it stands in a decorator that looks for a kernel of another package."""
    return getattr(function, "__wrapped__", function)
