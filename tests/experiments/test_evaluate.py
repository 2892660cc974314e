"""What an evaluation of a network says of itself."""

import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from experiments import evaluate, parsing
from tests.attacks import small_networks


def _flags(scale, left):
    problem = small_networks.network(20)
    numbers = np.arange(20)
    chosen = evaluate.Images(problem.images, problem.labels, np.full(20, "test"), numbers, numbers)
    settings = parsing.Evaluation({"linf": 0.1}, {"linf": (0.1,)}, {"linf": (0.1,)}, ("test",), 0, (), {}, 16)
    record = evaluate.Record("test", "linf", 0.1, "attacked", 20, left["square"], left)
    logits_fn = Partial(lambda images: scale * problem.logits_fn(images))
    return evaluate.flags(settings, logits_fn, chosen, [record, evaluate.Record("test", None, 0.0, "clean", 20, 20)])


def test_an_honest_network_has_no_flags_and_another_one_has_them_with_their_place():
    assert _flags(jnp.float32(1), {"clean": 20, "apgd-ce": 12, "square": 12}) == ()
    hidden, square = _flags(jnp.float32(1e5), {"clean": 20, "apgd-ce": 12, "square": 9})
    assert hidden.startswith("zero gradient: that of the cross-entropy is zero for ") and " of 16 images" in hidden
    assert square.startswith("test images, linf 0.1: Square broke 3 of the 12 images")
