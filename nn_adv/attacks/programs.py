"""What is compiled for an ascent that is called outside jit, an attack or a crafting, and how long it is kept.

A loop or a gradient outside jit is compiled anew each time, and JAX keeps what it compiled: calls by the hundred would
use up the memory maps of a process. Here each call is one program, which is forgotten when the call is over or, where
functions are the same next time, is one of a bounded number.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

_MOST_KEPT = 32  # programs; each takes some hundred memory maps, of 65,530 that a process may have


# Any: that a jitted function can count and drop its programs is not in its type.
_kept: Any = jax.jit(lambda fn, static, *args: fn(*args, **dict(static)), static_argnums=(0, 1))


def run(fn: Callable[..., Any], *args: Any, keep: bool = False, **static: Hashable) -> Any:
    """Return ``fn(*args, **static)``, compiled unless it is part of a larger program already.

    Args:
      fn: a function of a module.
      *args: pytrees of arrays, and functions.
      keep: keep the program for the next call with the same functions. A plain function may depend on variables that
        change between calls, which a kept program would not notice, so without this it is kept only if no function but
        those of this library and `jax.tree_util.Partial` is among ``args``: these depend on their arguments alone.
      **static: options that are compiled for.
    """
    if any(isinstance(leaf, jax.core.Tracer) for leaf in (*jax.tree.leaves(args), jnp.zeros(()))):
        return fn(*args, **static)
    is_kept = keep or all(_depends_on_arguments(arg) for arg in args if callable(arg))
    args = tuple(traceable(arg) if callable(arg) else arg for arg in args)
    if is_kept:
        if _kept._cache_size() >= _MOST_KEPT:
            _kept.clear_cache()
        return _kept(fn, tuple(static.items()), *args)
    leaves, structure = jax.tree.flatten(args)
    return jax.jit(lambda leaves: fn(*jax.tree.unflatten(structure, leaves), **static))(leaves)


def traceable(fn: Callable[..., Any]) -> Partial:
    """Make a pytree of a function, so that jit traces the arrays bound to it and compiles for the function itself."""
    return fn if isinstance(fn, Partial) else Partial(fn)


def _depends_on_arguments(fn: Callable[..., Any]) -> bool:
    return isinstance(fn, Partial) or str(getattr(fn, "__module__", "")).startswith("nn_adv.")
