"""A leaderboard on a few digits: networks of random features, and their configuration."""

import json

import jax
import numpy as np

from configs import leaderboard as config_file
from experiments import store
from nn_adv import data, models, zoo
from nn_adv.zoo import convert

EVALUATION = {
    "attacks": ("apgd-ce",),
    "num_steps": 3,
    "images_per_split": 20,
    "batch_size": 16,
}
ARGUMENTS = {"hidden_sizes": [32]}


def _network(seed):
    """A network of random features with the output layer fitted, and its accuracy on the test images."""
    digits = data.load("digits")
    model = models.create("mlp", 10, **ARGUMENTS)
    variables = model.init(jax.random.key(seed), np.zeros((1, 8, 8, 1), np.float32))
    state = convert.to_state_dict(variables)
    (hidden, out) = sorted(
        {key.rpartition(".")[0] for key in state}, key=lambda name: state[name + ".weight"].shape[0]
    )[::-1]
    features = np.maximum(_flat(digits.train_images) @ state[hidden + ".weight"].T + state[hidden + ".bias"], 0)
    state[out + ".weight"] = np.float32(np.linalg.lstsq(features, np.eye(10)[digits.train_labels], rcond=None)[0].T)
    state[out + ".bias"] = np.zeros(10, np.float32)
    features = np.maximum(_flat(digits.test_images) @ state[hidden + ".weight"].T + state[hidden + ".bias"], 0)
    predicted = np.argmax(features @ state[out + ".weight"].T, axis=1)
    return state, 100 * float(np.mean(predicted == digits.test_labels))


def _flat(images):
    return images.reshape(len(images), -1) / np.float32(255)


def make_weights(folder):
    """Networks One and Two; Off, whose catalogue errs; Torn, a damaged file; Other, of another architecture."""
    place = folder / "digits" / "Linf"
    records = []
    for seed, name in enumerate(("One", "Two", "Off", "Torn", "Other")):
        state, accuracy = _network(seed)
        if name == "Other":
            state = {f"another.{key}": value for key, value in state.items()}
        zoo.write_state_dict(place / f"{name}.safetensors", state)
        records.append(
            {
                "name": name,
                "dataset": "digits",
                "threat": "Linf",
                "architecture": "mlp",
                "arguments": ARGUMENTS,
                "image_shape": [8, 8, 1],
                "files": [{"name": f"{name}.safetensors"}],
                "clean_accuracy": round(accuracy - 3 * (name == "Off"), 2),
            }
        )
    torn = place / "Torn.safetensors"
    torn.write_bytes(torn.read_bytes()[:200])
    (folder / "catalogue.json").write_text(json.dumps(records))
    return folder


def tiny_config(weights, **changes):
    config = config_file.get_config(f"digits,{weights / 'catalogue.json'}")
    config.update({"curve": (0.5,), "fine_curve": (), "evaluation": EVALUATION, "models": ("1nn", "One", "Two")})
    config.update(changes)
    return config


def rows_of(workdir):
    rows, problems = store.read_rows(workdir)
    assert not problems
    return {row["method"]: row for row in rows}
