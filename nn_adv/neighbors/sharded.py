"""One search over many devices: points split over one axis of a mesh, queries over the other.

Every device searches its own blocks for its own queries. What it found, Q x k pairs of an exact distance and an index,
is gathered once, and every device takes the k nearest of all: no point leaves its device, and the answers are whole on
each of them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from nn_adv.neighbors.reference import Reference, padding_of
from nn_adv.precision import FLOATS, INTEGERS, Products

POINTS, QUERIES = "points", "queries"
_SPLIT = ("blocks", "index", "sq_norms", "centered_sq_norms")  # by blocks
_WHOLE = ("labels", "class_start", "center", "pixel_range", "linear_map")  # on every device


def shard(reference: Reference, mesh: Mesh) -> Reference:
    """Split the points over the devices of a mesh; every search of them then runs on all devices.

    Answers are those of one device, to the bit where integers decide, and whole on every device and process. In a
    cluster every process calls this with the same points, and then the same functions with the same queries.

    Args:
      reference: points from `fit`.
      mesh: of the axes "points", over which blocks of points are split, and "queries", in any order, as from
        ``jax.make_mesh((4, 2), ("points", "queries"))``.

    Raises:
      ValueError: a mesh of other axes, or points on disk.
    """
    if not isinstance(reference, Reference):
        raise ValueError("reference must be from fit: give stream the mesh for points on disk")
    return place(agreed(reference), check_mesh(mesh))


def check_mesh(mesh: Mesh) -> Mesh:
    """Return a mesh whose axes the compiler splits by; raise ValueError for others than those of `shard`."""
    if not isinstance(mesh, Mesh) or set(mesh.axis_names) != {POINTS, QUERIES}:
        got = mesh.axis_names if isinstance(mesh, Mesh) else type(mesh).__name__
        raise ValueError(f"mesh must be a Mesh of the axes ('{POINTS}', '{QUERIES}'), got {got}")
    return Mesh(mesh.devices, mesh.axis_names)


def agreed(reference: Reference) -> Reference:
    """Return a reference with the products that the first process chose: all must run the same program."""
    if jax.process_count() == 1:
        return reference
    ours = np.array([INTEGERS.index(reference.products.integers), FLOATS.index(reference.products.floats)])
    first = multihost_utils.broadcast_one_to_all(ours)
    return dataclasses.replace(reference, products=Products(INTEGERS[int(first[0])], FLOATS[int(first[1])]))


def place(reference: Reference, mesh: Mesh) -> Reference:
    """Split a reference over a mesh from `check_mesh`."""
    filling = -reference.blocks.shape[0] % mesh.shape[POINTS]

    def placed(name: str, array: chex.Array) -> jax.Array:
        array = np.asarray(array)
        if name in _SPLIT:
            missing = (0, filling), *((0, 0),) * (array.ndim - 1)
            array = np.pad(array, missing, constant_values=padding_of(name, array.dtype))
        sharding = NamedSharding(mesh, PartitionSpec(POINTS if name in _SPLIT else None))
        return jax.make_array_from_callback(array.shape, sharding, array.__getitem__)

    fields = [name for name in (*_WHOLE, *_SPLIT) if getattr(reference, name) is not None]
    mapped = None if reference.mapped is None else place(reference.mapped, mesh)
    arrays: dict[str, Any] = {name: placed(name, getattr(reference, name)) for name in fields}
    return dataclasses.replace(reference, mesh=mesh, mapped=mapped, **arrays)


def on_each(local: Callable, reference: Reference, arguments: tuple, specs: tuple, out: PartitionSpec):
    """Return ``local(reference, first, *arguments)`` of every device, put together as ``out`` says.

    The reference is that of the device's own blocks, without a mesh, and ``first`` the number of the first of them.
    """

    def on_one(reference, *arguments):
        first = lax.axis_index(POINTS).astype(jnp.int32) * reference.blocks.shape[0]
        return local(dataclasses.replace(reference, mesh=None), first, *arguments)

    in_specs = _specs(reference), *specs
    split = jax.shard_map(on_one, mesh=reference.mesh, in_specs=in_specs, out_specs=out, check_vma=False)
    return split(reference, *arguments)


def _specs(reference: Reference) -> Reference:
    whole = jax.tree.map(lambda _: PartitionSpec(), dataclasses.replace(reference, mapped=None))
    mapped = None if reference.mapped is None else _specs(reference.mapped)
    return dataclasses.replace(whole, mapped=mapped, **{name: PartitionSpec(POINTS) for name in _SPLIT})


def search(local: Callable, merge: Callable, reference: Reference, queries: chex.Array, *others: chex.Array):
    """Return ``merge(parts)`` for queries ``[Q, d]``, with what ``local`` found on each device; ``others`` are whole.

    Without a mesh there is one part. ``local`` gives an array ``[q, ...]``, see `on_each`, and ``merge`` gets those of
    all shares of points, ``[P, Q, ...]``, by one all-gather.
    """
    if reference.mesh is None:
        return merge(local(reference, 0, queries, *others)[None])
    shares = reference.mesh.shape[QUERIES]

    def gathered(*arguments):
        part = local(*arguments)
        parts = lax.all_gather(part, (POINTS, QUERIES))
        return merge(parts.reshape(-1, shares * part.shape[0], *part.shape[1:]))

    specs = PartitionSpec(QUERIES), *(PartitionSpec() for _ in others)
    found = on_each(gathered, reference, (_filled(queries, shares), *others), specs, PartitionSpec())
    return jax.tree.map(lambda x: x[: len(queries)], found)


def of_all_points(local: Callable, reference: Reference, *per_query: chex.Array) -> jax.Array:
    """Return what ``local(reference, *per_query)`` says of each query and point, ``[Q, P]``, which stays there."""
    if reference.mesh is None:
        return local(reference, *per_query)
    filled = tuple(_filled(some, reference.mesh.shape[QUERIES]) for some in per_query)
    specs = (PartitionSpec(QUERIES),) * len(per_query)
    found = on_each(
        lambda reference, _, *some: local(reference, *some), reference, filled, specs, PartitionSpec(QUERIES, POINTS)
    )
    return found[: len(per_query[0])]


def _filled(queries: chex.Array, shares: int) -> jax.Array:
    return jnp.pad(queries, ((0, -queries.shape[0] % shares), *((0, 0),) * (queries.ndim - 1)))


def on_host(array: chex.Array) -> np.ndarray:
    """Return all of an array as a NumPy array, also where other processes hold parts of it; they must ask too."""
    if not isinstance(array, jax.Array) or array.is_fully_addressable or array.is_fully_replicated:
        return np.asarray(array)
    return multihost_utils.process_allgather(array, tiled=True)
