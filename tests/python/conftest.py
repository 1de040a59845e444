"""What the Python tests share. They run against the installed package, not the source tree."""

from __future__ import annotations

import pathlib

import numpy
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
DATA = ROOT / "examples" / "data"


@pytest.fixture(scope="session")
def base() -> numpy.ndarray:
    """5,000 real embeddings, (5000, 384) float32."""
    return numpy.load(DATA / "base.npy").astype(numpy.float32)


@pytest.fixture(scope="session")
def queries() -> numpy.ndarray:
    """(200, 384) float32; query i describes base row i."""
    return numpy.load(DATA / "queries.npy").astype(numpy.float32)


@pytest.fixture(scope="session")
def small() -> numpy.ndarray:
    """(300, 40) float32."""
    return numpy.random.default_rng(1).standard_normal((300, 40), dtype=numpy.float32)
