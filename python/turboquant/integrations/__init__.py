"""Vector stores for frameworks: langchain (langchain-core) and llama_index (llama-index-core)."""
