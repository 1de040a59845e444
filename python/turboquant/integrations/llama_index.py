"""A LlamaIndex vector store over TurboQuant codes. Needs llama-index-core.

    from turboquant.integrations.llama_index import TurboQuantVectorStore
    store = TurboQuantVectorStore()
    index = VectorStoreIndex(nodes, storage_context=StorageContext.from_defaults(vector_store=store))
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from llama_index.core.bridge.pydantic import PrivateAttr
from llama_index.core.schema import BaseNode
from llama_index.core.vector_stores.types import (
    BasePydanticVectorStore,
    MetadataFilters,
    VectorStoreQuery,
    VectorStoreQueryMode,
    VectorStoreQueryResult,
)
from llama_index.core.vector_stores.utils import (
    build_metadata_filter_fn,
    metadata_dict_to_node,
    node_to_metadata_dict,
)

from .._core import write_index
from ._keyed_index import KeyedIndex


class TurboQuantVectorStore(BasePydanticVectorStore):
    """Nodes with metadata, searched by 1- to 4-bit codes of their embeddings.

    bits: 1 to 4. metric: "cosine" or "ip"; similarities are their estimates.
    """

    stores_text: bool = True
    is_embedding_query: bool = True
    bits: int = 4
    metric: str = "cosine"

    _index: KeyedIndex = PrivateAttr()
    _nodes: dict[str, dict[str, Any]] = PrivateAttr(default_factory=dict)

    def __init__(self, bits: int = 4, metric: str = "cosine", **kwargs: Any):
        if metric not in ("cosine", "ip"):
            raise ValueError(f'metric must be "cosine" or "ip", not {metric!r}')
        super().__init__(bits=bits, metric=metric, **kwargs)
        self._index = KeyedIndex(bits, metric)

    @classmethod
    def class_name(cls) -> str:
        return "TurboQuantVectorStore"

    @property
    def client(self) -> Any:
        """The turboquant.Index inside; None while the store is empty."""
        return self._index.index

    def add(self, nodes: Sequence[BaseNode], **kwargs: Any) -> list[str]:
        """Adds nodes that have embeddings; an id that is there already is replaced."""
        keys = [node.node_id for node in nodes]
        self._index.add(keys, [node.get_embedding() for node in nodes])
        for node in nodes:
            # The node as JSON text inside a flat dictionary, without its embedding.
            content = node_to_metadata_dict(node, remove_text=False, flat_metadata=False)
            self._nodes[node.node_id] = {
                "metadata": dict(node.metadata),
                "ref_doc_id": node.ref_doc_id,
                "content": content,
            }
        return keys

    def delete(self, ref_doc_id: str, **delete_kwargs: Any) -> None:
        """Deletes the nodes of one document."""
        self._remove([k for k, node in self._nodes.items() if node["ref_doc_id"] == ref_doc_id])

    def delete_nodes(
        self,
        node_ids: list[str] | None = None,
        filters: MetadataFilters | None = None,
        **delete_kwargs: Any,
    ) -> None:
        """Deletes the nodes that both arguments name."""
        if node_ids is not None or filters is not None:
            self._remove(self._matching(node_ids, filters))

    def clear(self) -> None:
        self._index.clear()
        self._nodes.clear()

    def get_nodes(
        self, node_ids: list[str] | None = None, filters: MetadataFilters | None = None
    ) -> list[BaseNode]:
        return [self._node(key) for key in self._matching(node_ids, filters)]

    def query(self, query: VectorStoreQuery, **kwargs: Any) -> VectorStoreQueryResult:
        if query.mode != VectorStoreQueryMode.DEFAULT:
            raise ValueError(f"query mode {query.mode} is not supported; use the default mode")
        if query.query_embedding is None:
            raise ValueError("the query has no embedding")
        # LlamaIndex's own retriever passes empty lists when it restricts nothing.
        accept = self._accept(query.node_ids or None, query.doc_ids or None, query.filters)
        found = self._index.search(query.query_embedding, query.similarity_top_k, accept)
        return VectorStoreQueryResult(
            nodes=[self._node(key) for key, _ in found],
            similarities=[score for _, score in found],
            ids=[key for key, _ in found],
        )

    def persist(self, persist_path: str, fs: Any = None) -> None:
        """Writes persist_path (JSON) and persist_path + ".tqi" (the index) to local disk."""
        if fs is not None:
            raise ValueError("only local paths are supported")
        path = Path(persist_path)
        path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"keys": self._index.state(), "nodes": self._nodes})
        if self._index.index is not None:
            write_index(self._index.index, str(path) + ".tqi")
        path.write_text(text, encoding="utf-8")

    @classmethod
    def from_persist_path(cls, persist_path: str, fs: Any = None) -> TurboQuantVectorStore:
        """The inverse of persist."""
        from .. import read_index

        if fs is not None:
            raise ValueError("only local paths are supported")
        state = json.loads(Path(persist_path).read_text(encoding="utf-8"))
        store = cls(state["keys"]["bits"], state["keys"]["metric"])
        file = Path(persist_path + ".tqi")
        index = read_index(file) if file.exists() else None
        store._index = KeyedIndex.from_state(state["keys"], index)
        store._nodes = state["nodes"]
        return store

    def _remove(self, keys: list[str]) -> None:
        self._index.remove(keys)
        for key in keys:
            self._nodes.pop(key, None)

    def _node(self, key: str) -> BaseNode:
        return metadata_dict_to_node(self._nodes[key]["content"])

    def _accept(
        self,
        node_ids: list[str] | None,
        doc_ids: list[str] | None,
        filters: MetadataFilters | None,
    ) -> Callable[[str], bool] | None:
        if node_ids is None and doc_ids is None and filters is None:
            return None
        passes = build_metadata_filter_fn(lambda key: self._nodes[key]["metadata"], filters)
        nodes = None if node_ids is None else set(node_ids)
        documents = None if doc_ids is None else set(doc_ids)
        return lambda key: (
            (nodes is None or key in nodes)
            and (documents is None or self._nodes[key]["ref_doc_id"] in documents)
            and passes(key)
        )

    def _matching(
        self, node_ids: list[str] | None, filters: MetadataFilters | None
    ) -> list[str]:
        accept = self._accept(node_ids, None, filters)
        return [key for key in self._nodes if accept is None or accept(key)]
