"""Answers of systems beside the queries that they answer, as pairs."""

from collections.abc import Iterator
from pathlib import Path

from paras2s_cli.data.manifest import read_rows, read_rows_leniently
from paras2s_cli.data.rows import BadRow, Pair, Query, Response
from paras2s_cli.errors import UsageError


def response_pairs(manifest: str, queries: Path, *, allow_outside: bool) -> Iterator[Pair | BadRow]:
    """The pairs of a manifest of responses (`-`: stdin), with what the manifest of `queries` says of each query.

    Raises:
        UsageError: a manifest cannot be read, or a response answers a query that is not there.
    """
    known = {query.id: query for query in read_rows(queries, Query, allow_outside=allow_outside)}
    for row in read_rows_leniently(manifest, Response, allow_outside=allow_outside):
        if isinstance(row, BadRow):
            yield row
            continue
        query = known.get(row.query)
        if query is None:
            raise UsageError(f"{manifest}: the query {row.query!r} is not in {queries}; name the manifest that has it with --queries")
        told = {"id": row.query, "dimension": query.dimension, "style": query.style, "system": row.system}
        heard = {"query": query.audio, "answer": row.audio, "query_text": query.text, "answer_text": row.text}
        yield Pair.model_validate(told | heard | {"requirement": query.requirement})
