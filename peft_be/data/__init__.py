from .corpus import load_corpus, passages
from .queries import QuerySplits, load_queries, query_column, query_key, split_queries


__all__ = ["QuerySplits", "load_corpus", "load_queries", "passages", "query_column", "query_key", "split_queries"]
