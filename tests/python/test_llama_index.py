"""The LlamaIndex vector store, against the real llama-index-core."""

from __future__ import annotations

import numpy
import pytest

pytest.importorskip("llama_index.core", reason="llama-index-core is not installed")

from llama_index.core.schema import NodeRelationship, RelatedNodeInfo, TextNode  # noqa: E402
from llama_index.core.vector_stores.types import (  # noqa: E402
    FilterOperator,
    MetadataFilter,
    MetadataFilters,
    VectorStoreQuery,
)

from turboquant.integrations.llama_index import TurboQuantVectorStore  # noqa: E402

VECTORS = numpy.random.default_rng(0).standard_normal((6, 64))


def node(i: int) -> TextNode:
    return TextNode(
        id_=f"node{i}",
        text=f"text {i}",
        embedding=VECTORS[i].tolist(),
        metadata={"parity": "odd" if i % 2 else "even", "n": i},
        relationships={NodeRelationship.SOURCE: RelatedNodeInfo(node_id=f"doc{i // 3}")},
    )


@pytest.fixture
def store() -> TurboQuantVectorStore:
    store = TurboQuantVectorStore()
    assert store.add([node(i) for i in range(6)]) == [f"node{i}" for i in range(6)]
    return store


def query(i: int, k: int = 2, **options) -> VectorStoreQuery:
    return VectorStoreQuery(query_embedding=VECTORS[i].tolist(), similarity_top_k=k, **options)


def where(key: str, value: object, operator=FilterOperator.EQ) -> MetadataFilters:
    return MetadataFilters(filters=[MetadataFilter(key=key, value=value, operator=operator)])


def test_query(store):
    result = store.query(query(3))
    assert result.ids[0] == "node3" and result.similarities[0] == pytest.approx(1, abs=0.1)
    assert result.nodes[0].text == "text 3" and result.nodes[0].metadata == node(3).metadata
    assert result.nodes[0].ref_doc_id == "doc1"
    assert len(store.query(query(0, 50)).ids) == 6


def test_filters(store):
    assert set(store.query(query(0, 9, filters=where("parity", "odd"))).ids) == {
        "node1", "node3", "node5",
    }  # fmt: skip
    assert set(store.query(query(0, 9, filters=where("n", 4, FilterOperator.GTE))).ids) == {
        "node4", "node5",
    }  # fmt: skip
    assert set(store.query(query(0, 9, doc_ids=["doc0"])).ids) == {"node0", "node1", "node2"}
    assert store.query(query(0, 9, node_ids=["node4"])).ids == ["node4"]


def test_delete(store):
    store.delete("doc0")
    assert set(store.query(query(0, 9)).ids) == {"node3", "node4", "node5"}
    store.delete_nodes(["node3", "node4"], where("parity", "odd"))
    assert set(store.query(query(0, 9)).ids) == {"node4", "node5"}
    assert [n.node_id for n in store.get_nodes(["node4", "node0"])] == ["node4"]
    store.clear()
    assert store.query(query(0)).ids == []
    store.add([node(1)])
    assert store.query(query(1)).ids == ["node1"]


def test_persist(store, tmp_path):
    store.delete_nodes(["node1"])
    store.persist(str(tmp_path / "folder" / "store.json"))
    again = TurboQuantVectorStore.from_persist_path(str(tmp_path / "folder" / "store.json"))
    mine, theirs = store.query(query(2, 9)), again.query(query(2, 9))
    assert (mine.ids, mine.similarities) == (theirs.ids, theirs.similarities)
    assert theirs.nodes[0].text == "text 2"


def test_in_a_vector_store_index(store):
    from llama_index.core import StorageContext, VectorStoreIndex
    from llama_index.core.embeddings import MockEmbedding

    class Fixed(MockEmbedding):
        def _get_query_embedding(self, text: str) -> list[float]:
            return VECTORS[int(text)].tolist()

    context = StorageContext.from_defaults(vector_store=store)
    index = VectorStoreIndex([], storage_context=context, embed_model=Fixed(embed_dim=64))
    index.insert_nodes([node(1)])
    found = index.as_retriever(similarity_top_k=1).retrieve("4")
    assert [n.node.node_id for n in found] == ["node4"]
