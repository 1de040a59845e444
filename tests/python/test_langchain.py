"""The LangChain vector store, against the real langchain-core."""

from __future__ import annotations

import numpy
import pytest

pytest.importorskip("langchain_core", reason="langchain-core is not installed")

from langchain_core.documents import Document  # noqa: E402
from langchain_core.embeddings import Embeddings  # noqa: E402

from turboquant.integrations.langchain import TurboQuantVectorStore  # noqa: E402


class LetterEmbeddings(Embeddings):
    """Counts of letters, mixed by a fixed matrix: similar spellings are near."""

    matrix = numpy.random.default_rng(0).standard_normal((26, 64))

    def embed_query(self, text: str) -> list[float]:
        counts = numpy.array([text.lower().count(chr(97 + i)) for i in range(26)], float)
        return (counts @ self.matrix).tolist()

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        return [self.embed_query(text) for text in texts]


TEXTS = ["apple pie", "apple tart", "zebra crossing", "quick fox", "lazy dog"]
METADATA = [{"kind": "food", "n": i} if i < 2 else {"kind": "animal", "n": i} for i in range(5)]


@pytest.fixture
def store() -> TurboQuantVectorStore:
    ids = [f"id{i}" for i in range(5)]
    return TurboQuantVectorStore.from_texts(TEXTS, LetterEmbeddings(), METADATA, ids=ids)


def test_search(store):
    (first, score), *_ = store.similarity_search_with_score("apple pie", k=2)
    assert (first.id, first.page_content, first.metadata) == ("id0", "apple pie", METADATA[0])
    assert score == pytest.approx(1, abs=0.1)
    assert [d.id for d in store.similarity_search("zebra crossing", k=1)] == ["id2"]
    vector = LetterEmbeddings().embed_query("lazy dog")
    assert [d.id for d in store.similarity_search_by_vector(vector, k=1)] == ["id4"]
    assert len(store.similarity_search("dog", k=50)) == 5
    relevance = store.similarity_search_with_relevance_scores("apple pie", k=5)
    assert all(0 <= score <= 1 for _, score in relevance)


def test_filters(store):
    found = store.similarity_search("apple pie", k=5, filter={"kind": "animal"})
    assert {d.id for d in found} == {"id2", "id3", "id4"}
    found = store.similarity_search("apple pie", k=5, filter=lambda d: d.metadata["n"] % 2 == 1)
    assert {d.id for d in found} == {"id1", "id3"}
    assert store.similarity_search("apple pie", k=5, filter={"absent": None}) == []


def test_delete_and_replace(store):
    assert store.delete(["id0", "unknown"])
    assert len(store) == 4 and store.get_by_ids(["id0"]) == []
    assert [d.id for d in store.similarity_search("apple pie", k=1)] == ["id1"]
    store.add_documents([Document(id="id1", page_content="violin", metadata={"kind": "music"})])
    assert len(store) == 4
    assert store.get_by_ids(["id1"])[0].page_content == "violin"
    assert [d.id for d in store.similarity_search("violin", k=1)] == ["id1"]
    store.delete()
    assert len(store) == 0 and store.similarity_search("violin") == []


def test_returned_documents_are_copies(store):
    store.get_by_ids(["id0"])[0].metadata["kind"] = "changed"
    assert store.get_by_ids(["id0"])[0].metadata == METADATA[0]


def test_ids_are_made(store):
    (new,) = store.add_texts(["something new"])
    assert store.get_by_ids([new])[0].page_content == "something new"


def test_marginal_relevance_and_retriever(store):
    found = store.max_marginal_relevance_search("apple pie", k=3, fetch_k=5, lambda_mult=0.1)
    assert len(found) == 3 and found[0].id == "id0"
    assert found[1].id != "id1"  # nearly the same as the first
    retriever = store.as_retriever(search_kwargs={"k": 2, "filter": {"kind": "food"}})
    assert {d.id for d in retriever.invoke("apple")} == {"id0", "id1"}


@pytest.mark.parametrize("metric", ["cosine", "ip", "l2"])
def test_save_and_load(metric, tmp_path):
    store = TurboQuantVectorStore(LetterEmbeddings(), bits=3, metric=metric)
    store.save_local(tmp_path / "empty")
    assert len(TurboQuantVectorStore.load_local(tmp_path / "empty", LetterEmbeddings())) == 0
    store.add_texts(TEXTS, METADATA)
    store.delete(store.add_texts(["goes away"]))
    store.save_local(tmp_path / "store")
    again = TurboQuantVectorStore.load_local(tmp_path / "store", LetterEmbeddings())
    assert len(again) == 5
    assert again.similarity_search_with_score("dog") == store.similarity_search_with_score("dog")
    again.add_texts(["one more"])
    assert len(again) == 6
