"""What does a step of an attack cost, beside the forward and backward pass that it cannot do without?

The floor of a step is the gradient of the loss at the images: for 1NN through its soft form, two products, of queries
and points and of weights and points. FAB's targeted steps take a forward pass more, and Square's queries are forward
passes. Each attack is timed as a whole, from clean images to result, with n steps and with 3 n: a step is what the
difference costs, and the rest (a start, looks at the clean logits and at the last point) is told beside it.
Compilation is left out. Bare passes and attacks take turns, medians are reported.

  python -m benchmarks.attacks --models small_cnn --output=docs/benchmarks/attacks.json
  python -m benchmarks.attacks --models soft_1nn --repeats=9 --output=docs/benchmarks/attacks.json
  python -m benchmarks.attacks --models linear --output=docs/benchmarks/attacks.json
  python -m benchmarks.attacks --models preact_resnet18 --steps=2 --repeats=3 --output=docs/benchmarks/attacks.json

The file keeps the models of earlier runs. On two cores the last command takes a quarter of an hour.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.timing import command, environment, keep, kept, take_turns
from nn_adv import attacks, models, neighbors
from nn_adv.threat import NORMS, Threat

_NUM_POINTS = 10_000  # of the soft 1NN
_RADII = {"l1": 12.0, "l2": 0.5, "linf": 4 / 255}
_GRADIENT, _FORWARD, _PRODUCTS = "bare forward and backward", "bare forward", "two products"
# Each by its number of steps and its radius.
_ATTACKS: dict[str, Callable[[int, float], Callable]] = {
    "apgd": lambda count, radius: functools.partial(attacks.apgd, num_steps=count, loss_fn=attacks.margin),
    "pgd": lambda count, radius: functools.partial(
        attacks.pgd, num_steps=count, step_size=radius / count, loss_fn=attacks.margin
    ),
    "fab-t": lambda count, radius: functools.partial(attacks.fab, num_steps=count, num_targets=1),
    "square": lambda count, radius: functools.partial(attacks.square, num_queries=count),
}


class Problem(NamedTuple):
    """A classifier of random weights or points, images ``[B, ...]``, and the labels it gives them."""

    logits_fn: Callable
    images: jax.Array
    labels: jax.Array
    products: Callable | None = None  # the two products of the soft 1NN


def network(name: str, shape: tuple[int, ...], batch_size: int, **options) -> Problem:
    """Make a network of random weights."""
    model = models.create(name, 10, **options)
    images = jax.random.uniform(jax.random.key(0), (batch_size, *shape))
    variables = model.init(jax.random.key(1), images[:1])
    logits_fn = jax.tree_util.Partial(model.apply, variables)
    return Problem(logits_fn, images, jnp.argmax(jax.jit(logits_fn)(images), axis=1))


def soft_neighbors(batch_size: int) -> Problem:
    """Make the soft 1NN of random points as large as those of a pair of CIFAR-10."""
    rng = np.random.default_rng(0)
    points = rng.integers(0, 256, (_NUM_POINTS, 32, 32, 3), dtype=np.uint8)
    reference = neighbors.fit(points, np.arange(_NUM_POINTS) % 2, 2)
    images = jnp.asarray(rng.random((batch_size, 32, 32, 3)), jnp.float32)
    flat = jnp.asarray(points.reshape(_NUM_POINTS, -1) / 255, jnp.float32)
    logits_fn = jax.tree_util.Partial(_soft_logits, reference)
    return Problem(logits_fn, images, neighbors.predict(reference, images), jax.tree_util.Partial(_products, flat))


def _soft_logits(reference, images):
    return neighbors.soft_logits(reference, images, 10.0)


def _products(points, images):
    """The two products that a gradient of the soft 1NN cannot do without."""
    scores = jnp.matmul(images.reshape(len(images), -1), points.T, precision="highest")
    return jnp.matmul(scores, points, precision="highest")


PROBLEMS = {
    "preact_resnet18": functools.partial(network, "preact_resnet18", (32, 32, 3)),
    "small_cnn": functools.partial(network, "small_cnn", (28, 28, 1)),
    "soft_1nn": soft_neighbors,
    "linear": functools.partial(network, "mlp", (32, 32, 3), hidden_sizes=()),  # next to nothing but the attack
}


def run_problem(problem: Problem, steps: int, repeats: int) -> list[dict]:
    """Time bare passes and each attack in each norm, all in turns; one line each."""
    arguments = (problem.logits_fn, problem.images, problem.labels)

    @functools.partial(jax.jit, static_argnames="fn")
    def attack(logits_fn, images, labels, threat, fn):
        return fn(logits_fn, images, labels, key=jax.random.key(0), threat=threat).adversarial

    @functools.partial(jax.jit, static_argnames="count")
    def gradients(logits_fn, images, labels, count):
        return _one_after_the_other(jax.grad(lambda x: jnp.sum(attacks.margin(logits_fn(x), labels))), images, count)

    passes = jax.jit(_one_after_the_other, static_argnames="count")
    calls: dict[str, Callable[[int], Callable]] = {
        _GRADIENT: lambda count: functools.partial(gradients, *arguments, count=count),
        _FORWARD: lambda count: functools.partial(passes, problem.logits_fn, problem.images, count=count),
    }
    if problem.products is not None:
        calls[_PRODUCTS] = lambda count: functools.partial(passes, problem.products, problem.images, count=count)
    for name, norm in itertools.product(_ATTACKS, NORMS):
        calls[f"{name} {norm}"] = lambda count, name=name, norm=norm: functools.partial(
            attack, *arguments, Threat(norm, _RADII[norm]), fn=_ATTACKS[name](count, _RADII[norm])
        )

    counts = (steps, 3 * steps)
    contestants = {(name, count): make(count) for name, make in calls.items() for count in counts}
    take_turns(contestants, 1)  # compiles
    turns = take_turns(contestants, repeats)
    few, many = ({name: turns[name, count][:, 0] for name in calls} for count in counts)
    per_step = {name: float(np.median(many[name] - few[name])) / (2 * steps) for name in calls}
    floors = {"fab-t": per_step[_GRADIENT] + per_step[_FORWARD], "square": per_step[_FORWARD]}
    rows = []
    for name, seconds in per_step.items():
        around = float(np.median(few[name])) - steps * seconds
        ratio = seconds / floors.get(name.split()[0], per_step[_GRADIENT])
        row = {"name": name, "ms": 1000 * seconds, "ms_around": 1000 * around, "ratio": ratio}
        row |= {"ratio_to_products": seconds / per_step[_PRODUCTS]} if _PRODUCTS in per_step else {}
        rows.append({key: value if key == "name" else round(value, 3) for key, value in row.items()})
    return rows


def _one_after_the_other(fn, images, count):
    """Call ``fn`` on images that the last result has changed a little, so that no call can be left out."""

    def step(_, x):
        result = fn(x)
        return x + 1e-9 * (result.reshape(x.shape) if result.size == x.size else jnp.mean(result))

    return jax.lax.fori_loop(0, count, step, images)


def main() -> None:
    """Run the cases and print, and with ``--output`` write, the results."""
    parser = command(__doc__, repeats=5)
    parser.add_argument("--models", nargs="+", default=list(PROBLEMS), choices=list(PROBLEMS))
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--steps", type=int, default=10)
    arguments = parser.parse_args()
    report = kept(arguments.output)
    for name in arguments.models:
        rows = run_problem(PROBLEMS[name](arguments.batch_size), arguments.steps, arguments.repeats)
        sizes = {key: getattr(arguments, key) for key in ("batch_size", "steps", "repeats")}
        report[name] = {"environment": environment("flax")} | sizes | {"cases": rows}
        print(name)
        for row in rows:
            print(
                f"  {row['name']:28}{row['ms']:10.2f} ms a step, {row['ms_around']:8.2f} ms around",
                *(f"x{row[key]}" for key in row if "ratio" in key),
                flush=True,
            )
        keep(arguments.output, report)


if __name__ == "__main__":
    main()
