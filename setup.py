"""Packaging of Hybrid: `pip install -e .` or, with the tested versions, `make install`."""

from setuptools import find_packages, setup

RUNTIME = [
    "jax>=0.10,<0.13",
    "flax>=0.12",
    "optax>=0.2.8",
    "orbax-checkpoint>=0.12,<0.13",
    "grain>=0.2.18",
    "array-record>=0.8",
    "tensorflow-datasets>=4.9.10",
    "importlib-resources>=6.4",  # tfds 4.9.10 imports it and does not declare it
    "ml-collections>=1.1",
    "tokenizers>=0.22",
    "safetensors>=0.6",
    "gguf>=0.17",
    "numpy>=2.1",
    "scipy>=1.15",
    "polars>=1.30",
    "matplotlib>=3.10",
    "rich>=14",
    "wandb>=0.31",
]

EXTRAS = {
    "dev": [
        "beartype>=0.22",
        "hypothesis>=6.150",
        "jaxtyping>=0.3.7",
        "mktestdocs>=0.2.4",
        "mypy>=1.19",
        "pytest>=9",
        "pytest-timeout>=2.4",
        "pytest-xdist>=3.8",
        "ruff>=0.14",
    ],
    "notebooks": ["ipykernel>=7", "jupytext>=1.18", "nbclient>=0.10"],
    "workspaces": ["wandb[workspaces]"],
    # published implementations, for tests on fresh random weights and for benchmarks
    "parity": ["torch>=2.9", "transformers>=5.20", "mambapy>=1.2"],
    "cuda12": ["jax[cuda12]"],
    "cuda13": ["jax[cuda13]"],
    "tpu": ["jax[tpu]"],
}

setup(
    name="hybrid-ablations",
    version="0.1.0",
    description="How much attention does a sequence model need, and where? Architecture ablations in JAX.",
    python_requires=">=3.11",
    packages=find_packages(include=["hybrid", "hybrid.*", "experiments", "experiments.*"]),
    install_requires=RUNTIME,
    extras_require=EXTRAS,
)
