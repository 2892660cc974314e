"""One of two processes that search, certify and train together; run by `test_processes`.

python tests/two_processes.py PROCESS PORT FOLDER
"""

import pathlib
import sys

import jax
import numpy as np

from nn_adv import Threat, certify, models, neighbors, training


def answers(reference, mesh):
    """Return what is asked of both processes and of one device."""
    rng = np.random.default_rng(1)
    queries, labels = rng.integers(0, 256, (9, 5, 5, 1)).astype(np.uint8), rng.integers(0, 3, 9)
    found = neighbors.nearest(reference, queries, 3)
    radius = certify.radius(reference, queries, labels, norm="linf")
    images = rng.integers(0, 256, (32, 5, 5, 1)).astype(np.uint8)
    member = training.Member(np.arange(32), np.arange(32) % 2)
    recipe = training.Recipe(threats=(Threat("l2", 0.5),), num_steps=2, num_epochs=2, batch_size=16)
    model = models.create("mlp", 2, hidden_sizes=(8,))
    trained = training.train(model, images, [member], recipe, seeds=[0], mesh=mesh)
    return {
        "distances": np.asarray(found.distances),
        "indices": np.asarray(found.indices),
        "classes": np.asarray(neighbors.class_distances(reference, queries, norm="l1")),
        "predicted": np.asarray(neighbors.predict(reference, queries)),
        "soft": np.asarray(neighbors.soft_logits(reference, queries, 0.5)),
        "lower": radius.lower,
        "upper": radius.upper,
        "adversarial": radius.adversarial,
        "loss": trained.history.loss,
    }


def points():
    """Return the points that are searched."""
    rng = np.random.default_rng(0)
    return neighbors.fit(
        rng.integers(0, 256, (150, 5, 5, 1)).astype(np.uint8), rng.integers(0, 3, 150), 3, block_size=16
    )


if __name__ == "__main__":
    process, port, folder = sys.argv[1:]
    jax.distributed.initialize(f"localhost:{port}", num_processes=2, process_id=int(process))
    mesh = jax.make_mesh((2, 2), ("points", "queries"))
    split = neighbors.shard(points(), mesh)
    np.savez(pathlib.Path(folder) / f"{process}.npz", **answers(split, jax.make_mesh((4,), ("data",))))
