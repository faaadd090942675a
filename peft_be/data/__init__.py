from .corpus import load_corpus, passages
from .queries import as_queries, load_queries, query_column, query_dataset
from .splits import QuerySplits, query_key, split_queries, validation_without
from .table import read_table


__all__ = [
    "QuerySplits",
    "as_queries",
    "load_corpus",
    "load_queries",
    "passages",
    "query_column",
    "query_dataset",
    "query_key",
    "read_table",
    "split_queries",
    "validation_without",
]
