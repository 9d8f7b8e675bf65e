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
    "channels": ("tensor", "sequence"),
    "expert": ("expert",),
}
"""`channels` is for rows that must be whole while they are transformed: the devices that share their length take some
of their channels each instead."""


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


def batch_shardings(mesh: Mesh, batch: Mapping[str, Any]) -> dict[str, NamedSharding]:
    """Of the arrays (batch, length, ...) of a batch: cut along both where the devices divide them."""

    def one(array: Any) -> NamedSharding:
        axes = ("batch", "length", *(None,) * array.ndim)[: array.ndim]
        return NamedSharding(mesh, spec(mesh, array.shape, axes))

    return {name: one(array) for name, array in batch.items()}


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


@contextmanager
def on(mesh: Mesh) -> Iterator[None]:
    """Makes `constrain` speak of this mesh while a function is traced."""
    with jax.set_mesh(mesh):
        yield


def active_mesh() -> AbstractMesh | None:
    """The mesh of several devices that a function is traced for; None without one, and inside of `per_device`."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1 or AxisType.Manual in mesh.axis_types:
        return None
    return mesh


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """Asks XLA to keep x cut along these logical axes; does nothing where there is no `active_mesh`."""
    mesh = active_mesh()
    return x if mesh is None else jax.lax.with_sharding_constraint(x, spec(mesh, x.shape, axes))


Axes = tuple[str | None, ...]


def per_device(
    function: Callable[..., Any], axes: Sequence[Axes | None], out_axes: Axes | list[Axes]
) -> Callable[..., Any]:
    """A function that is computed piece by piece along these logical axes, each device on its own piece alone.

    For operators that XLA would gather whole on every device first, such as Fourier transforms, or in whose loops it
    would let the devices talk at every step. axes: of each array, or None for a tree of arrays that every device has
    whole (what is closed over will not do); arrays may be None. out_axes: of the output, or a list of those of several.
    An axis is cut where the devices divide it in every array that has it. Nothing changes where there is no
    `active_mesh`.
    """

    def run(*arrays: Any) -> Any:
        mesh = active_mesh()
        if mesh is None:
            return function(*arrays)
        named = [
            (array.shape, names)
            for array, names in zip(arrays, axes, strict=True)
            if array is not None and names is not None
        ]
        cuts = _cuts(mesh, named)

        def lying(names: Axes) -> PartitionSpec:
            return PartitionSpec(*(cuts.get(name or "") for name in names))

        inputs = tuple(
            PartitionSpec() if array is None or names is None else lying(names)
            for array, names in zip(arrays, axes, strict=True)
        )
        outputs = tuple(map(lying, out_axes)) if isinstance(out_axes, list) else lying(out_axes)
        shared = jax.shard_map(function, mesh=mesh, in_specs=inputs, out_specs=outputs, check_vma=False)
        return shared(*arrays)

    return run


def _cuts(mesh: AbstractMesh, arrays: Sequence[tuple[tuple[int, ...], Axes]]) -> dict[str, tuple[str, ...]]:
    """The mesh axes of each logical axis that can be cut in all arrays, given as (shape, axes)."""
    cuts: dict[str, tuple[str, ...]] = {}
    for shape, axes in arrays:
        for name, entry in zip(axes, spec(mesh, shape, axes), strict=True):
            if name is not None:
                kept = cuts.get(name, entry or ())
                cuts[name] = kept if entry else ()
    return {name: devices for name, devices in cuts.items() if devices}
