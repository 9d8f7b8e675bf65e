"""Meshes, the rules from logical to mesh axes, and constraints: the only file that speaks to jax.sharding.

A leaf declares logical axes ("embed", "heads", ...); RULES say over which mesh axes each is cut. A dimension that its
devices do not divide stays whole.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import jax
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from hybrid.params import Param, map_leaves
from hybrid.validation import ConfigError

AXES = ("data", "fsdp", "tensor", "sequence", "expert")

RULES: dict[str, tuple[str, ...]] = {
    "batch": ("data", "fsdp"),
    "length": ("sequence",),
    "embed": ("fsdp",),
    "vocab": ("tensor",),
    "heads": ("tensor",),
    "kv_heads": ("tensor",),
    "mlp": ("tensor",),
    "inner": ("tensor",),
    "expert": ("expert",),
}


def make_mesh(data: int = 1, fsdp: int = 1, tensor: int = 1, sequence: int = 1, expert: int = 1) -> Mesh:
    """A mesh of the first data x fsdp x tensor x sequence x expert devices."""
    sizes = (data, fsdp, tensor, sequence, expert)
    wanted, there = math.prod(sizes), jax.device_count()
    if wanted > there:
        asked = " x ".join(f"{axis} {size}" for axis, size in zip(AXES, sizes, strict=True) if size > 1)
        raise ConfigError("mesh", f"{asked} = {wanted} devices are not there; jax sees {there}")
    return jax.make_mesh(sizes, AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=jax.devices()[:wanted])


def spec(mesh: Mesh | AbstractMesh, shape: tuple[int, ...], axes: tuple[str | None, ...]) -> PartitionSpec:
    """How an array of this shape and these logical axes lies on the mesh."""
    taken: set[str] = set()
    entries: list[tuple[str, ...] | None] = []
    for size, axis in zip(shape, axes, strict=True):
        devices = tuple(name for name in RULES.get(axis or "", ()) if mesh.shape[name] > 1)
        if taken & set(devices):
            raise ValueError(f"axes {axes}: two dimensions would lie on mesh axis {sorted(taken & set(devices))[0]!r}")
        if not devices or size % math.prod(mesh.shape[name] for name in devices):
            entries.append(None)
            continue
        taken |= set(devices)
        entries.append(devices)
    return PartitionSpec(*entries)


def param_shardings(mesh: Mesh, declarations: Mapping[str, Any]) -> dict[str, Any]:
    """A NamedSharding for each Param of a tree of declarations."""

    def one(_: tuple[str, ...], param: Param) -> NamedSharding:
        return NamedSharding(mesh, spec(mesh, param.shape, param.axes))

    return map_leaves(one, declarations)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Of arrays whose first axis is the batch."""
    return NamedSharding(mesh, PartitionSpec(RULES["batch"]))


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


@contextmanager
def on(mesh: Mesh) -> Iterator[None]:
    """Makes `constrain` speak of this mesh while a function is traced."""
    with jax.set_mesh(mesh):
        yield


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """Asks XLA to keep x cut along these logical axes; does nothing where no mesh is set or it has one device."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return x
    return jax.lax.with_sharding_constraint(x, spec(mesh, x.shape, axes))


def per_device(
    function: Callable[..., jax.Array], axes: Sequence[tuple[str | None, ...]], out_axes: tuple[str | None, ...]
) -> Callable[..., jax.Array]:
    """A function that is computed piece by piece along these logical axes, each device on its own piece alone.

    For operators that XLA would gather whole on every device first, such as Fourier transforms. The output has the
    sizes of the first argument. Nothing changes where no mesh is set.
    """

    def run(*arrays: jax.Array) -> jax.Array:
        mesh = jax.sharding.get_abstract_mesh()
        if mesh.empty or mesh.size == 1:
            return function(*arrays)
        specs = tuple(spec(mesh, array.shape, names) for array, names in zip(arrays, axes, strict=True))
        out = spec(mesh, arrays[0].shape, out_axes)
        return jax.shard_map(function, mesh=mesh, in_specs=specs, out_specs=out, check_vma=False)(*arrays)

    return run
