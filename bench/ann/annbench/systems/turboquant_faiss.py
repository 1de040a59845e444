"""This project's indexes inside FAISS's Python module, whose own parts are then its wheel's."""

from __future__ import annotations

from importlib.metadata import version

import turboquant.faiss

from . import faiss_index

turboquant.faiss.install()


class Index(faiss_index.Index):
    """params: as faiss_index; the environment's FAISS must be one that there is a plugin for."""

    version = f"turboquant {version('turboquant')} in {faiss_index.Index.version}"
