"""Which keys a query sees, for all of a call or for one tile of it."""

from __future__ import annotations

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

# The score of a key that is not seen. Finite, so that a difference of two of them is a number.
NEGLIGIBLE = -1e30


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["q_positions", "k_positions", "q_segments", "k_segments", "k_valid"],
    meta_fields=["causal", "window"],
)
@dataclasses.dataclass(frozen=True)
class Visibility:
    """Positions (batch or 1, length), segments (batch, length) or None, validity of keys (batch, k_length) or None."""

    q_positions: jax.Array
    k_positions: jax.Array
    q_segments: jax.Array | None
    k_segments: jax.Array | None
    k_valid: jax.Array | None
    causal: bool
    window: int | None

    def mask(self) -> jax.Array:
        """(batch, q_length, k_length) bool; one row where all rows are the same."""
        distance = self.q_positions[:, :, None] - self.k_positions[:, None, :]
        return self._rules(distance, distance, self._same_segment(), self.k_valid)

    def _same_segment(self) -> jax.Array | None:
        if self.q_segments is None or self.k_segments is None:
            return None
        return self.q_segments[:, :, None] == self.k_segments[:, None, :]

    def _rules(
        self, farthest: jax.Array, nearest: jax.Array, same: jax.Array | None, valid: jax.Array | None
    ) -> jax.Array:
        """Whether some distance (query minus key) in nearest..farthest can be seen; with the two exchanged, all."""
        visible = jnp.ones(farthest.shape, bool)
        if self.causal:
            visible &= farthest >= 0
        if self.window is not None:
            visible &= nearest < self.window
            if not self.causal:
                visible &= farthest > -self.window
        if same is not None:
            visible &= same
        if valid is not None:
            visible &= valid[:, None, :]
        return visible

    def tile(self, q_start: jax.Array, q_size: int, k_start: jax.Array, k_size: int) -> Visibility:
        """The part for some queries and keys."""

        def cut(array: jax.Array | None, start: jax.Array, size: int):
            return None if array is None else lax.dynamic_slice_in_dim(array, start, size, axis=1)

        return dataclasses.replace(
            self,
            q_positions=cut(self.q_positions, q_start, q_size),
            k_positions=cut(self.k_positions, k_start, k_size),
            q_segments=cut(self.q_segments, q_start, q_size),
            k_segments=cut(self.k_segments, k_start, k_size),
            k_valid=cut(self.k_valid, k_start, k_size),
        )

    def padded(self, q_length: int, k_length: int) -> Visibility:
        """With queries and keys appended; the keys are not valid."""
        k_valid = jnp.ones(self.k_positions.shape, bool) if self.k_valid is None else self.k_valid

        def pad(array: jax.Array | None, length: int, mode: str = "edge"):
            return None if array is None else jnp.pad(array, ((0, 0), (0, length - array.shape[1])), mode=mode)

        needs_valid = self.k_valid is not None or k_length > self.k_positions.shape[1]
        return dataclasses.replace(
            self,
            q_positions=pad(self.q_positions, q_length),
            k_positions=pad(self.k_positions, k_length),
            q_segments=pad(self.q_segments, q_length),
            k_segments=pad(self.k_segments, k_length),
            k_valid=pad(k_valid, k_length, "constant") if needs_valid else None,
        )

    def tiles(self, q_size: int, k_size: int) -> jax.Array:
        """(q tiles, k tiles) bool: False where surely no query of the tile sees any of its keys, in any row.

        From the extremes of positions and segments in each tile, so it costs little and errs only towards True.
        """
        q_low, q_high = _extremes(self.q_positions, q_size)
        k_low, k_high = _extremes(self.k_positions, k_size, self.k_valid)
        farthest = q_high[:, :, None] - k_low[:, None, :]
        nearest = q_low[:, :, None] - k_high[:, None, :]
        same = None
        if self.q_segments is not None and self.k_segments is not None:
            (q0, q1), (k0, k1) = _extremes(self.q_segments, q_size), _extremes(self.k_segments, k_size, self.k_valid)
            same = (q1[:, :, None] >= k0[:, None, :]) & (k1[:, None, :] >= q0[:, :, None])
        valid = None if self.k_valid is None else _in_tiles(self.k_valid, k_size).any(-1)
        return self._rules(farthest, nearest, same, valid).any(0)

    def whole_tiles(self, q_size: int, k_size: int) -> jax.Array:
        """(q tiles, k tiles) bool: True where surely every query of the tile sees all of its keys, in every row."""
        (q_low, q_high), (k_low, k_high) = _extremes(self.q_positions, q_size), _extremes(self.k_positions, k_size)
        farthest = q_high[:, :, None] - k_low[:, None, :]
        nearest = q_low[:, :, None] - k_high[:, None, :]
        same = None
        if self.q_segments is not None and self.k_segments is not None:
            (q0, q1), (k0, k1) = _extremes(self.q_segments, q_size), _extremes(self.k_segments, k_size)
            same = (q0 == q1)[:, :, None] & (k0 == k1)[:, None, :] & (q0[:, :, None] == k0[:, None, :])
        valid = None if self.k_valid is None else _in_tiles(self.k_valid, k_size).all(-1)
        return self._rules(nearest, farthest, same, valid).all(0)


def _in_tiles(array: jax.Array, size: int) -> jax.Array:
    return array.reshape(array.shape[0], -1, size)


def _extremes(array: jax.Array, size: int, valid: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
    """Lowest and highest entry of each tile, of the valid ones: two arrays (batch, tiles)."""
    tiles = _in_tiles(array, size)
    if valid is None:
        return tiles.min(-1), tiles.max(-1)
    ok, limits = _in_tiles(valid, size), jnp.iinfo(array.dtype)
    # Half of the range, so that a difference of two does not overflow; tiles without a valid key are dropped anyway.
    return jnp.where(ok, tiles, limits.max // 2).min(-1), jnp.where(ok, tiles, limits.min // 2).max(-1)
