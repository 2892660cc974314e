"""What does it cost to attack the networks of the catalogue? Counted, without weights and without a GPU.

Each network is traced on abstract images. Counted are the operations of the logits and of the gradient at the images
(a multiplication and an addition are two), and the bytes of the weights and of what the gradient keeps of each image.
From them and the passes of the standard ensemble follow the hours of a leaderboard (images that no attack breaks, all
of them: an upper bound) on a GPU that sustains so many operations a second. That rate is an assumption. The largest
batch is what fits, beside the weights, into four fifths of a card by this count.

  python -m benchmarks.zoo_cost --output=docs/benchmarks/zoo_cost.json
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from benchmarks.timing import command, environment, keep
from nn_adv import models, zoo

# Gradients and further logits of one image that no attack of the ensemble breaks: APGD-CE and, over nine targets,
# APGD-T of 100 steps; FAB-T over nine targets, whose steps look again where they have arrived; Square of 5,000 queries.
GRADIENTS = 100 + 9 * 100 + 9 * 100
FORWARDS = 9 * 100 + 5000
_BATCH = 8  # traced; figures are per image
_CARDS_GB = (24, 80)
_USABLE = 0.8


def cost(entry: zoo.Entry) -> dict[str, float]:
    """Count the operations and bytes of a network."""
    network = models.create(entry.architecture, entry.num_classes, **entry.arguments)
    images = jax.ShapeDtypeStruct((_BATCH, *entry.image_shape), jnp.float32)
    variables = jax.eval_shape(network.init, jax.random.key(0), images)
    weights = _bytes(variables)

    def total(variables, images):
        return jnp.sum(network.apply(variables, images))

    def kept(variables, images):
        return jax.vjp(lambda images: network.apply(variables, images), images)[1]

    return {
        "parameters": _bytes(variables["params"]) // 4,
        "weights_gb": round(weights / 1e9, 2),
        "forward_gflop": round(_operations(network.apply, variables, images) / _BATCH / 1e9, 2),
        "gradient_gflop": round(_operations(jax.grad(total, argnums=1), variables, images) / _BATCH / 1e9, 2),
        # The weights are among what is kept.
        "kept_mb": round(max(_bytes(jax.eval_shape(kept, variables, images)) - weights, 0) / _BATCH / 1e6, 1),
    }


def _operations(fn, *arguments) -> float:
    return jax.jit(fn).lower(*arguments).cost_analysis()["flops"]


def _bytes(tree) -> int:
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def main() -> None:
    parser = command(__doc__)
    parser.add_argument("--tflops", type=float, default=50.0, help="operations that the GPU sustains, 1e12 a second")
    parser.add_argument("--images", type=int, default=1000, help="of each split")
    parser.add_argument("--evaluations", type=int, default=4, help="splits times radii, as if none shared its work")
    arguments = parser.parse_args()
    known: dict[tuple, dict] = {}
    rows = {}
    for entry in zoo.catalogue().values():
        what = (entry.architecture, str(sorted(entry.arguments.items())))
        known[what] = known.get(what) or cost(entry)
        row = dict(known[what])
        per_image = GRADIENTS * row["gradient_gflop"] + FORWARDS * row["forward_gflop"]
        row["hours"] = round(per_image * arguments.images * arguments.evaluations / (arguments.tflops * 1e3) / 3600, 1)
        for card in _CARDS_GB:
            row[f"largest_batch_{card}_gb"] = int((_USABLE * card - row["weights_gb"]) * 1e3 / row["kept_mb"])
        rows[entry.name] = {"architecture": entry.architecture, "in_paper": entry.in_paper, **row}
        print(f"{entry.name:40}", *(f"{name} {value}" for name, value in row.items()), flush=True)
    hours = sum(row["hours"] for row in rows.values() if row["in_paper"])
    weights = sum(row["weights_gb"] for row in rows.values() if row["in_paper"])
    print(f"the paper's networks together: {hours:.0f} hours at {arguments.tflops} TFLOP/s, weights {weights:.0f} GB")
    settings = {"tflops": arguments.tflops, "images": arguments.images, "evaluations": arguments.evaluations}
    report = {"environment": environment("flax"), **settings, "hours_of_the_paper": round(hours, 1), "models": rows}
    keep(arguments.output, report)


if __name__ == "__main__":
    main()
