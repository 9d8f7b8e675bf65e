"""Hyena over a long sequence, some channels at a time, so that memory is bounded.

Everything between the first and the last product of Hyena happens a channel at a time: a loop goes over blocks of
channels and makes their rows of all streams, short convolution, gates, taps and long convolutions. Nothing of a block
is kept for the gradient but what all blocks share, the input and the hidden layer of the filters: the backward pass
computes each block again. Arrays are channel-major, (channels, batch, length), so that transforms and products run
over contiguous memory.

For width d and length L the loop holds a few arrays of (d, L) and the spectra of one block, and not the (streams d, L)
of all streams and their spectra. It costs half as many transforms again, on top of six a convolution.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from hybrid.lazy import jax, jnp

if TYPE_CHECKING:
    from hybrid.config import ModelConfig

Taps = Callable[[Any, Mapping[str, Any]], Any]
"""(hidden of the filters, their parameters for a block) -> (convolutions, channels of the block, length)."""


TILE = 4096
"""Positions of a tile, over the batch."""


class Blocks(NamedTuple):
    """Parameters with the blocks as first axis; S streams, C convolutions, n channels a block."""

    rows: Any
    """(blocks, S n, d_model), bias (blocks, S n)"""
    rows_bias: Any
    short: Any
    """(blocks, taps, S n), bias (blocks, S n)"""
    short_bias: Any
    skip: Any
    """(blocks, C, n), or None"""
    filters: Any
    """What `taps` reads."""


NO_ROWS: dict[str, Any] = dict.fromkeys(("rows", "rows_bias", "short", "short_bias"))


def by_channels(array: Any, axis: int, blocks: int) -> Any:
    """The channels of `axis` in blocks: their number becomes the first axis."""
    axis %= array.ndim
    cut = array.reshape(*array.shape[:axis], blocks, -1, *array.shape[axis + 1 :])
    return jnp.moveaxis(cut, axis, 0)


def stacked(config: ModelConfig, params: Mapping[str, Any], filters: Mapping[str, Any], blocks: int) -> Blocks:
    """params: Hyena's. filters: what its taps read, (blocks, ...) already."""
    d, streams = config.d_model, config.hyena.order + 1

    def rows(array: Any) -> Any:
        """(..., streams d) -> (blocks, ..., streams n)."""
        cut = by_channels(array.reshape(*array.shape[:-1], streams, d), -1, blocks)
        return cut.reshape(*cut.shape[:-2], -1)

    return Blocks(
        rows=rows(params["in"]).swapaxes(1, 2),
        rows_bias=rows(params["in_bias"]),
        short=rows(params["short"]),
        short_bias=rows(params["short_bias"]),
        skip=by_channels(params["skip"], 1, blocks) if "skip" in params else None,
        filters=filters,
    )


def mix(
    config: ModelConfig, taps: Taps, x: Any, hidden: Any, blocks: Blocks, out: Any, padding: Any, gated: Callable
) -> Any:
    """The operator up to its last bias: (batch, length, d_model) for x of that shape.

    hidden: the hidden layer of the filters, any shape (None where they have none). out: (d_model, d_model).
    padding: (batch, length), zero at positions that are not there, or None. gated: (streams, convolve) -> the value
    after all gates and convolutions.
    """
    from hybrid.ops.fftconv import gated_conv
    from hybrid.ops.room import room
    from hybrid.ops.tiles import by_tiles, pulled_by_tiles
    from hybrid.ops.turn import turned

    batch, length, d = x.shape
    before, tile = blocks.short.shape[1] - 1, max(TILE // batch, 1)

    def padded(x: Any) -> Any:
        """(d_model, batch, before + length), zeros in front."""
        if batch == 1:
            return turned(x[0], before)[:, None]
        return jnp.pad(turned(x.reshape(-1, d)).reshape(d, batch, length), ((0, 0), (0, 0), (before, 0)))

    def there(padding: Any) -> Any:
        """(batch, before + length): zero in front and at what is not there."""
        ones = jnp.ones((batch, length), x.dtype) if padding is None else padding
        return jnp.pad(ones, ((0, 0), (before, 0)))

    project = functools.partial(_streams, config.hyena.order + 1)
    halos = (before, before)

    def streams(h: Any, p: Blocks, real: Any) -> tuple[Any, ...]:
        return by_tiles(project, (h, real), p._replace(skip=None, filters=None), tile, halos)

    def block(streams: tuple[Any, ...], hidden: Any, p: Blocks) -> Any:
        """(channels of the block, batch, length) of its streams."""
        kernels = taps(hidden, p.filters)

        def convolve(i: int, v: Any, first: Any, last: Any) -> Any:
            skip = None if p.skip is None else p.skip[i]
            return gated_conv(v, kernels[i], before=first, after=last, skip=skip, saved="spectra")

        return gated(list(streams), convolve)

    @jax.custom_vjp
    def run(x: Any, hidden: Any, blocks: Blocks, out: Any, padding: Any) -> Any:
        h, real = padded(x), there(padding)
        v = jax.lax.map(lambda p: block(streams(h, p, real), hidden, p), blocks).reshape(d, -1)
        return _contract(v, out.astype(x.dtype), 0).reshape(x.shape)

    def forward(*arguments: Any) -> tuple[Any, Any]:
        return run(*arguments), arguments

    def backward(arguments: Any, dy: Any) -> Any:
        x, hidden, blocks, out, padding = arguments
        h, real, dy = padded(x), there(padding), turned(dy.reshape(-1, d))
        out_rows = out.astype(x.dtype).reshape(len(blocks.rows), -1, d)

        def step(sums: tuple[Any, Any], inputs: tuple[Blocks, Any]) -> tuple[Any, Any]:
            (dh, dhidden), (p, rows) = sums, inputs
            v, pull = jax.vjp(block, streams(h, p, real), hidden, p._replace(**NO_ROWS))
            (dv,), drows = pulled_by_tiles(_last, (v.reshape(len(rows), -1),), rows, dy, TILE)
            dstreams, more, dp = pull(dv.reshape(v.shape))
            own = p._replace(skip=None, filters=None)
            (dh, _), of_rows = pulled_by_tiles(project, (h, real), own, dstreams, tile, halos, (dh, unused))
            dp = of_rows._replace(skip=dp.skip, filters=dp.filters)
            return (dh, jax.tree.map(jnp.add, dhidden, more)), (dp, drows)

        unused = jnp.zeros_like(real)
        zeros = jax.tree.map(lambda a: room(a.shape, a.dtype, after=dy), (h, hidden))
        (dh, dhidden), (dblocks, dout) = jax.lax.scan(step, zeros, (blocks, out_rows))
        dx = turned(dh[..., before:].reshape(d, -1)).reshape(x.shape)
        return dx, dhidden, dblocks, dout.reshape(d, d).astype(out.dtype), None

    run.defvjp(forward, backward)
    return run(x, hidden, blocks, out, None if padding is None else padding.astype(x.dtype))


def _streams(count: int, long: tuple[Any, Any], p: Blocks) -> tuple[Any, ...]:
    """The `count` streams of a block in one tile, (n, batch, tile) each: product, bias, causal short convolution, bias.

    long: h (d_model, batch, before + tile), real (batch, before + tile).
    """
    h, real = long
    before, real = p.short.shape[0] - 1, jax.lax.stop_gradient(real)
    u = _contract(p.rows.astype(h.dtype).T, h.reshape(len(h), -1), 0).reshape(-1, *real.shape)
    u = (u + _beside(p.rows_bias, u)) * real
    precise = jnp.promote_types(u.dtype, jnp.float32)
    wide = u.astype(precise)
    now = u[..., before:]
    y = _beside(p.short_bias.astype(precise), now)
    for j in range(before + 1):
        y = y + wide[..., j : j + now.shape[-1]] * _beside(p.short[j].astype(precise), now)
    y = y.astype(u.dtype) * real[:, before:]
    return tuple(jnp.split(y, count))


def _last(long: tuple[Any], rows: Any) -> Any:
    """A block's part of the last product, (d_model, positions): long is v (n, positions), rows (n, d_model)."""
    return _contract(rows, long[0], 0)


def _contract(a: Any, b: Any, axis: int) -> Any:
    """Sum over `axis` of both: accumulated in float32 at least, in the dtype of b."""
    precise = jnp.promote_types(b.dtype, jnp.float32)
    product = jax.lax.dot_general(a, b, (((axis,), (axis,)), ((), ())), preferred_element_type=precise)
    return product.astype(b.dtype)


def _beside(per_row: Any, like: Any) -> Any:
    from hybrid.ops.spread import spread

    return spread(per_row.astype(like.dtype), like.shape, 0)
