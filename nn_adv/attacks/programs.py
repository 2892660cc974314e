"""What is compiled for an attack, or an inner maximisation, that is called outside jit.

A loop or a gradient outside jit is compiled anew each time, and JAX keeps what it compiled: calls by the hundred would
use up the memory maps of a process. Here each call is one program, one of a bounded number that are kept.
"""

from __future__ import annotations

import collections
import hashlib
from collections.abc import Callable, Hashable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import jaxpr_as_fun
from jax.tree_util import Partial

_MOST_KEPT = 32  # programs; each takes some hundred memory maps, of 65,530 that a process may have


# Any: that a jitted function can count and drop its programs is not in its type.
_of_functions: Any = jax.jit(lambda fn, static, *args: fn(*args, **dict(static)), static_argnums=(0, 1))
_of_texts: collections.OrderedDict[tuple[int, bytes], Any] = collections.OrderedDict()  # the last used at the end


def run(fn: Callable[..., Any], *args: Any, kept: dict[Hashable, Callable] | None = None, **static: Hashable) -> Any:
    """Return ``fn(*args, **static)``, compiled unless it is part of a larger program already.

    Args:
      fn: a function of a module.
      *args: pytrees of arrays, and functions.
      kept: the caller's programs by their functions, for as long as no plain function among these changes. One may
        depend on variables that change between calls, which would not be noticed, so without this only callable pytrees
        and this library's functions that close over nothing are found by themselves: they depend on their arguments
        alone. Others are traced at each call, and compiled where they do anything new.
      **static: options that are compiled for.
    """
    if any(isinstance(leaf, jax.core.Tracer) for leaf in (*jax.tree.leaves(args), jnp.zeros(()))):
        return fn(*args, **static)
    is_trusted = all(depends_on_arguments(arg) for arg in args if callable(arg))
    args = tuple(traceable(arg) if callable(arg) else arg for arg in args)
    if is_trusted:
        if _of_functions._cache_size() >= _MOST_KEPT:
            _of_functions.clear_cache()
        return _of_functions(fn, tuple(static.items()), *args)
    leaves, structure = jax.tree.flatten(args)
    if kept is None:
        return _traced(lambda *args: fn(*args, **static), structure, leaves)(leaves)
    asked = (fn, tuple(static.items()), structure, *((np.shape(leaf), jnp.result_type(leaf)) for leaf in leaves))
    if asked not in kept:
        kept[asked] = _traced(lambda *args: fn(*args, **static), structure, leaves)
    return kept[asked](leaves)


def _traced(fn: Callable[..., Any], structure: Any, leaves: list[Any]) -> Callable[[list[Any]], Any]:
    """Trace a function, and look its program up by the program's text; arrays it closes over are arguments of that."""
    # What is in the structure, functions among it, would stay with the arguments of what is traced.
    jaxpr, shapes = jax.make_jaxpr(lambda leaves: fn(*jax.tree.unflatten(structure, leaves)), return_shape=True)(leaves)
    # All arguments are in the text: it must say which of them is used.
    pure = jax.jit(lambda consts, leaves: jaxpr_as_fun(jaxpr.replace(consts=consts))(*leaves), keep_unused=True)
    lowered = pure.lower(jaxpr.consts, leaves)
    text = lowered.as_text()
    where = [str(getattr(leaf, "sharding", "")) for leaf in leaves], jax.config.values["jax_default_device"]
    key = len(leaves), hashlib.sha256(f"{text} {where}".encode()).digest()
    program = _of_texts.pop(key, None) or lowered.compile()
    if "callback" not in text:  # the text does not say which function of the host is called
        _of_texts[key] = program
        if len(_of_texts) > _MOST_KEPT:
            _of_texts.popitem(last=False)
    return lambda leaves: jax.tree.unflatten(jax.tree.structure(shapes), program(jaxpr.consts, leaves))


def traceable(fn: Callable[..., Any]) -> Partial:
    """Make a pytree of a function, so that jit traces the arrays bound to it and compiles for the function itself.

    Callable pytrees, such as modules of Flax NNX, are traced with their own arrays.

    Raises:
      ValueError: a Partial that binds True or False, which a function could not branch on.
    """
    if isinstance(fn, Partial):
        if any(isinstance(leaf, bool) for leaf in jax.tree.leaves(fn)):
            raise ValueError(
                "a Partial must not bind True or False, which would be traced: bind it in the function, once, "
                "Partial(functools.partial(fn, train=False), variables)"
            )
        return fn
    return Partial(_call, fn) if _is_pytree(fn) else Partial(fn)


def _call(fn: Callable[..., Any], *args: Any) -> Any:
    return fn(*args)


def _is_pytree(fn: Callable[..., Any]) -> bool:
    return not jax.tree_util.all_leaves([fn])


def depends_on_arguments(fn: Callable[..., Any]) -> bool:
    """Tell whether a function is trusted to depend on its arguments alone, those bound to it among them."""
    if isinstance(fn, Partial) and not jax.tree.leaves(fn):  # a plain function, made a pytree of
        return depends_on_arguments(fn.func)
    is_ours = str(getattr(fn, "__module__", "")).startswith("nn_adv.")
    is_closure = getattr(fn, "__closure__", None) is not None  # a new one would be a new program
    return _is_pytree(fn) or (is_ours and not is_closure)
