"""Where the arrays of a training are: on one device, or split over a mesh, by batch or by member."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

DATA = "data"


class Spread(NamedTuple):
    """How arrays are placed; the compiler splits the work as they are. Without a mesh they stay where they are."""

    mesh: Mesh | None
    by_member: bool

    @classmethod
    def over(cls, mesh: Mesh | None, num_members: int, batch_size: int) -> Spread:
        """Split members over a mesh where there are several, and else their batches.

        Raises:
          ValueError: a mesh of other axes, or one that cannot be split over evenly.
        """
        if mesh is None:
            return cls(None, num_members > 1)
        if not isinstance(mesh, Mesh) or mesh.axis_names != (DATA,):
            got = mesh.axis_names if isinstance(mesh, Mesh) else type(mesh).__name__
            raise ValueError(f"mesh must be a Mesh of the axis ('{DATA}',), got {got}")
        what, count = ("members", num_members) if num_members > 1 else ("batch_size", batch_size)
        if count % mesh.size:
            raise ValueError(f"{what} must be a multiple of the {mesh.size} devices of the mesh, got {count}")
        return cls(Mesh(mesh.devices, mesh.axis_names), num_members > 1)

    def whole(self, tree: Any) -> Any:
        """Place arrays on every device."""
        return self._placed(tree, PartitionSpec())

    def members(self, tree: Any) -> Any:
        """Place arrays of all members ``[M, ...]``, or of one: whole on every device."""
        return self._placed(tree, PartitionSpec(DATA) if self.by_member else PartitionSpec())

    def batches(self, tree: Any) -> Any:
        """Place arrays of batches ``[M, S, B]``, or ``[S, B]`` of one member."""
        return self._placed(tree, PartitionSpec(DATA) if self.by_member else PartitionSpec(None, DATA))

    def _placed(self, tree: Any, spec: PartitionSpec) -> Any:
        if self.mesh is None:
            return tree
        sharding = NamedSharding(self.mesh, spec)
        return jax.tree.map(lambda array: _place(array, sharding), tree)


def _place(array: Any, sharding: NamedSharding) -> jax.Array:
    """Place what each process has as a whole; the mesh may span processes."""
    if jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(_place(jax.random.key_data(array), sharding), impl=jax.random.key_impl(array))
    host = np.asarray(array)
    return jax.make_array_from_callback(host.shape, sharding, host.__getitem__)
