from .corpus import load_corpus, passages
from .queries import as_queries, load_queries, query_column, query_dataset
from .rows import read_rows
from .splits import QuerySplits, query_key, split_queries


__all__ = [
    "QuerySplits",
    "as_queries",
    "load_corpus",
    "load_queries",
    "passages",
    "query_column",
    "query_dataset",
    "query_key",
    "read_rows",
    "split_queries",
]
