"""Floating point operations of a jaxpr: exact for matrix products, through scan, remat, jit and custom derivatives.

XLA's own `cost_analysis` counts the body of a loop once; here it is multiplied by its trip count. A multiply-add is
two operations, other arithmetic on a number is one, a Fourier transform of length N is 5 N log2 N (also of real
numbers), moving and comparing numbers is none.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax.numpy as jnp
from jax.extend import core

ELEMENTWISE = frozenset(
    (
        "add sub mul div max min neg abs rem add_any square integer_pow pow sqrt rsqrt cbrt exp exp2 expm1 log log1p "
        "logistic tanh sin cos tan sinh cosh asin acos atan atan2 erf erfc erf_inv lgamma digamma"
    ).split()
)
REDUCTIONS = frozenset("reduce_sum reduce_max reduce_min reduce_prod argmax argmin".split())
CUMULATIVE = frozenset("cumsum cumprod cummax cummin cumlogsumexp".split())


def count_jaxpr(closed: Any) -> int:
    """Operations of a closed jaxpr (what `jax.make_jaxpr` returns). Raises ValueError at a loop of unknown length."""
    return sum(_equation(equation) for equation in closed.jaxpr.eqns)


def _equation(equation: Any) -> int:
    name = equation.primitive.name
    if name in COUNTERS:
        return COUNTERS[name](equation)
    if name in ELEMENTWISE:
        return _floats(equation.outvars[0])
    if name in REDUCTIONS or name in CUMULATIVE:
        return _floats(equation.invars[0])
    return sum(count_jaxpr(inner) for inner in _inner(equation.params))


def _floats(variable: Any) -> int:
    """The size of an array of floating point (or complex) numbers, 0 of others."""
    return variable.aval.size if jnp.issubdtype(variable.aval.dtype, jnp.inexact) else 0


def _inner(params: dict[str, Any]) -> Iterator[Any]:
    """The jaxprs that an equation calls. Of a custom derivative only the function itself, not its rules."""
    for value in params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            if isinstance(item, core.ClosedJaxpr):
                yield item
            elif isinstance(item, core.Jaxpr):
                yield core.ClosedJaxpr(item, ())


def _dot(equation: Any) -> int:
    (contract, _), _ = equation.params["dimension_numbers"]
    shape = equation.invars[0].aval.shape
    return 2 * equation.outvars[0].aval.size * math.prod(shape[axis] for axis in contract)


def _ragged_dot(equation: Any) -> int:
    """Every row takes part in one group's product, if in any: rows d_in d_out multiply-adds, in all derivatives too."""
    left, right, out = equation.invars[0].aval, equation.invars[1].aval, equation.outvars[0].aval
    groups = equation.invars[2].aval.shape[-1]
    # rows d_in, rows d_out, groups d_in d_out, in any order, with any axes of a batch: the root of their product
    return 2 * math.isqrt(left.size * right.size * out.size // groups)


def _convolution(equation: Any) -> int:
    numbers = equation.params["dimension_numbers"]
    kernel = equation.invars[1].aval
    return 2 * equation.outvars[0].aval.size * kernel.size // kernel.shape[numbers.rhs_spec[0]]


def _fft(equation: Any) -> int:
    """One rule for complex and real transforms, in either direction; n is the length in time."""
    n = math.prod(equation.params["fft_lengths"])
    size = max(equation.invars[0].aval.size, equation.outvars[0].aval.size)  # a real one has n/2 + 1 frequencies
    return round(size // n * 5 * n * math.log2(n))


def _scan(equation: Any) -> int:
    return equation.params["length"] * count_jaxpr(equation.params["jaxpr"])


def _while(equation: Any) -> int:
    inside = count_jaxpr(equation.params["body_jaxpr"])
    if inside:
        raise ValueError("a while loop has no known number of trips; count a form of the operator that scans")
    return 0


def _cond(equation: Any) -> int:
    return max(count_jaxpr(branch) for branch in equation.params["branches"])


COUNTERS: dict[str, Callable[[Any], int]] = {
    "dot_general": _dot,
    "ragged_dot_general": _ragged_dot,
    "conv_general_dilated": _convolution,
    "fft": _fft,
    "scan": _scan,
    "while": _while,
    "cond": _cond,
}
