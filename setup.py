"""Packaging: `pip install .` installs the library nn_adv; experiments and benchmarks run from a checkout."""

import pathlib
import re

import setuptools

ROOT = pathlib.Path(__file__).parent
VERSION = re.search(r'^__version__ = "(.+)"$', (ROOT / "nn_adv" / "__init__.py").read_text(), re.MULTILINE)[1]
README = ROOT / "README.md"

# Lower bounds are generous; the versions tested together are the pins in requirements/.
DATA = [
    "tensorflow-datasets>=4.9.10",
    "array_record>=0.8; platform_system != 'Windows'",  # the file format read without TensorFlow
    "importlib_resources>=6.0",  # tensorflow-datasets 4.9 imports it and does not ask for it
    "pillow>=10.0",
    "scikit-learn>=1.6",
    "tqdm>=4.66",
]
EXPERIMENTS = [
    *DATA,
    "absl-py>=2.1",
    "jinja2>=3.1",
    "matplotlib>=3.10",
    "ml-collections>=1.0",
    "orbax-checkpoint>=0.11.20,<1",  # 1.0 has another interface
    "pandas>=3.0",
    "safetensors>=0.5",
]
ZOO = ["safetensors>=0.5", "torch>=2.6", "gdown>=6.3"]  # torch reads published weights, gdown fetches them
NOTEBOOKS = ["nbclient>=0.10", "ipykernel>=6.29"]  # to run those of notebooks/
TEST = ["pytest>=8.0", "pytest-xdist>=3.6", "hypothesis>=6.100", "ruff>=0.14", "mypy>=1.15", *NOTEBOOKS]

setuptools.setup(
    name="nn_adv",
    version=VERSION,
    description="How robust the 1-nearest-neighbour classifier is beside adversarially trained networks, in JAX.",
    long_description=README.read_text() if README.exists() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    packages=setuptools.find_packages(include=["nn_adv", "nn_adv.*"]),
    package_data={"nn_adv": ["py.typed"], "nn_adv.data": ["digits.npz"], "nn_adv.zoo": ["catalogue.json"]},
    python_requires=">=3.11",
    install_requires=["jax>=0.10", "flax>=0.12", "optax>=0.2.5", "chex>=0.1.90", "numpy>=2.0", "scipy>=1.14"],
    extras_require={
        "data": DATA,
        "experiments": EXPERIMENTS,
        "zoo": ZOO,
        "all": [*EXPERIMENTS, *ZOO],
        "cuda": ["jax[cuda12]"],
        "tpu": ["jax[tpu]"],
        "test": [*EXPERIMENTS, *ZOO, *TEST],
        "peers": [
            "foolbox==3.3.4",
            "adversarial-robustness-toolbox==1.20.1",
        ],  # an audit and tests use them
        "docs": ["mkdocs-material>=9.6", "mkdocstrings-python>=2.0", "latex2mathml>=3.77"],
        "bench": ["faiss-cpu>=1.9", "torch>=2.6"],
    },
    classifiers=[
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
