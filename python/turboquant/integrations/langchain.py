"""A LangChain vector store over TurboQuant codes. Needs langchain-core.

    from turboquant.integrations.langchain import TurboQuantVectorStore
    store = TurboQuantVectorStore.from_texts(texts, embedding, metadatas)
    store.similarity_search("query", k=4, filter={"source": "manual"})
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.vectorstores import VectorStore
from langchain_core.vectorstores.utils import maximal_marginal_relevance

from .._core import write_index
from ._keyed_index import KeyedIndex

Filter = dict[str, Any] | Callable[[Document], bool]


class TurboQuantVectorStore(VectorStore):
    """Documents with metadata, searched by 1- to 4-bit codes of their embeddings.

    filter: a dict, whose items must all equal the document's metadata, or a function of a Document.
    Scores are cosines or inner products (larger is better), or squared distances for "l2".
    """

    def __init__(self, embedding: Embeddings, bits: int = 4, metric: str = "cosine"):
        self._embedding = embedding
        self._index = KeyedIndex(bits, metric)
        self._documents: dict[str, Document] = {}

    @property
    def embeddings(self) -> Embeddings:
        return self._embedding

    def __len__(self) -> int:
        return len(self._documents)

    def add_texts(
        self,
        texts: Iterable[str],
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: list[str] | None = None,
        **kwargs: Any,
    ) -> list[str]:
        """Adds texts; an id that is there already is replaced. Returns the ids."""
        texts = list(texts)
        return self.add_embeddings(
            texts, self._embedding.embed_documents(texts), metadatas, ids=ids
        )

    def add_embeddings(
        self,
        texts: Sequence[str],
        vectors: Sequence[Sequence[float]],
        metadatas: Sequence[dict[str, Any]] | None = None,
        *,
        ids: Sequence[str | None] | None = None,
    ) -> list[str]:
        """Adds texts whose embeddings are there already."""
        keys = [key or str(uuid.uuid4()) for key in (ids or [None] * len(texts))]
        metadata = [dict(m) for m in (metadatas or [{}] * len(texts))]
        if not len(texts) == len(keys) == len(metadata):
            raise ValueError("texts, metadatas and ids differ in number")
        self._index.add(keys, vectors)
        for key, text, data in zip(keys, texts, metadata):
            self._documents[key] = Document(id=key, page_content=text, metadata=data)
        return keys

    def delete(self, ids: list[str] | None = None, **kwargs: Any) -> bool | None:
        """Deletes documents by id; None deletes all. Ids that are not there do not matter."""
        keys = list(self._documents) if ids is None else ids
        self._index.remove(keys)
        for key in keys:
            self._documents.pop(key, None)
        return True

    def get_by_ids(self, ids: Sequence[str], /) -> list[Document]:
        return [self._copy(key) for key in ids if key in self._documents]

    def similarity_search(self, query: str, k: int = 4, **kwargs: Any) -> list[Document]:
        return [d for d, _ in self.similarity_search_with_score(query, k, **kwargs)]

    def similarity_search_with_score(
        self, query: str, k: int = 4, filter: Filter | None = None, **kwargs: Any
    ) -> list[tuple[Document, float]]:
        vector = self._embedding.embed_query(query)
        return self.similarity_search_with_score_by_vector(vector, k, filter)

    def similarity_search_by_vector(
        self, embedding: list[float], k: int = 4, filter: Filter | None = None, **kwargs: Any
    ) -> list[Document]:
        found = self.similarity_search_with_score_by_vector(embedding, k, filter)
        return [document for document, _ in found]

    def similarity_search_with_score_by_vector(
        self, embedding: Sequence[float], k: int = 4, filter: Filter | None = None
    ) -> list[tuple[Document, float]]:
        found = self._index.search(embedding, k, self._accept(filter))
        return [(self._copy(key), score) for key, score in found]

    def max_marginal_relevance_search(
        self,
        query: str,
        k: int = 4,
        fetch_k: int = 20,
        lambda_mult: float = 0.5,
        **kwargs: Any,
    ) -> list[Document]:
        vector = self._embedding.embed_query(query)
        return self.max_marginal_relevance_search_by_vector(
            vector, k, fetch_k, lambda_mult, **kwargs
        )

    def max_marginal_relevance_search_by_vector(
        self,
        embedding: list[float],
        k: int = 4,
        fetch_k: int = 20,
        lambda_mult: float = 0.5,
        filter: Filter | None = None,
        **kwargs: Any,
    ) -> list[Document]:
        found = self._index.search(embedding, fetch_k, self._accept(filter))
        keys = [key for key, _ in found]
        if not keys:
            return []
        query = numpy.asarray(embedding, numpy.float32)
        chosen = maximal_marginal_relevance(
            query, list(self._index.vectors(keys)), lambda_mult=lambda_mult, k=k
        )
        return [self._copy(keys[i]) for i in chosen]

    @classmethod
    def from_texts(
        cls,
        texts: list[str],
        embedding: Embeddings,
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: list[str] | None = None,
        bits: int = 4,
        metric: str = "cosine",
        **kwargs: Any,
    ) -> TurboQuantVectorStore:
        store = cls(embedding, bits, metric)
        store.add_texts(texts, metadatas, ids=ids)
        return store

    def save_local(self, folder: str | Path) -> None:
        """Writes index.tqi and documents.json; metadata must be JSON."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        documents = [
            {"id": key, "text": d.page_content, "metadata": d.metadata}
            for key, d in self._documents.items()
        ]
        state = {"keys": self._index.state(), "documents": documents}
        text = json.dumps(state, ensure_ascii=False)
        if self._index.index is not None:
            write_index(self._index.index, folder / "index.tqi")
        (folder / "documents.json").write_text(text, encoding="utf-8")

    @classmethod
    def load_local(cls, folder: str | Path, embedding: Embeddings) -> TurboQuantVectorStore:
        """The inverse of save_local."""
        from .. import read_index

        folder = Path(folder)
        state = json.loads((folder / "documents.json").read_text(encoding="utf-8"))
        path = folder / "index.tqi"
        store = cls(embedding, state["keys"]["bits"], state["keys"]["metric"])
        index = read_index(path) if path.exists() else None
        store._index = KeyedIndex.from_state(state["keys"], index)
        for d in state["documents"]:
            document = Document(id=d["id"], page_content=d["text"], metadata=d["metadata"])
            store._documents[d["id"]] = document
        return store

    def _select_relevance_score_fn(self) -> Callable[[float], float]:
        if self._index.metric == "cosine":
            return lambda score: min(max((score + 1) / 2, 0.0), 1.0)
        if self._index.metric == "l2":
            return lambda distance: 1 / (1 + max(distance, 0.0))
        return self._max_inner_product_relevance_score_fn

    def _copy(self, key: str) -> Document:
        d = self._documents[key]
        return Document(id=key, page_content=d.page_content, metadata=dict(d.metadata))

    def _accept(self, filter: Filter | None) -> Callable[[str], bool] | None:
        if filter is None:
            return None
        if callable(filter):
            return lambda key: filter(self._documents[key])
        items = list(filter.items())
        missing = object()

        def matches(key: str) -> bool:
            metadata = self._documents[key].metadata
            return all(metadata.get(name, missing) == value for name, value in items)

        return matches
