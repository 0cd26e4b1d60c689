"""Rows of other trainers: `messages` (role, content) with `audios`, read as pairs or demonstrations."""

from __future__ import annotations

from typing import Any

from paras2s_cli.data.rows import Demonstration, Pair, Row

PLACEHOLDER = "<audio>"


def is_messages(row: dict[str, Any]) -> bool:
    """Whether `row` is such a conversation rather than one of ours."""
    return "messages" in row and "query" not in row


def from_messages(row: dict[str, Any], model: type[Row]) -> dict[str, Any]:
    """The fields of a Pair or a Demonstration out of a conversation; other keys (id, ...) stay.

    Every `<audio>` in a content stands for the next of `audios`; a content may also be a list of parts
    ({"type": "audio", "audio": path}, {"type": "text", "text": ...}). The last user audio that is followed by
    an assistant audio is the query, that assistant audio is the answer, and the assistant's text is the
    answer's text. Raises ValueError, in words, for what is no such conversation.
    """
    if model not in (Pair, Demonstration):
        raise ValueError(f"a messages row cannot be read as {model.__name__}")
    turns = _turns(row)
    answer_at = _last(turns, "assistant", len(turns))
    query_at = _last(turns, "user", answer_at)
    query, answer, text = turns[query_at][1], turns[answer_at][1], turns[answer_at][2]
    rest = {key: value for key, value in row.items() if key not in ("messages", "audios")}
    if model is Pair:
        return {**rest, "query": query, "answer": answer, "answer_text": text or None}
    return {**rest, "query": {"id": str(row.get("id", query)), "audio": query}, "audio": answer, "text": text}


def _turns(row: dict[str, Any]) -> list[tuple[str, str | None, str]]:
    """(role, last audio or None, text) a message."""
    messages, audios = row["messages"], row.get("audios", [])
    if not isinstance(messages, list) or not isinstance(audios, list) or not all(isinstance(a, str) for a in audios):
        raise ValueError('"messages" must be a list of turns and "audios" a list of paths')
    left = iter(audios)
    turns: list[tuple[str, str | None, str]] = []
    used = 0
    for message in messages:
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise ValueError('every message needs a "role" and a "content"')
        heard: list[str] = []
        words: list[str] = []
        content = message.get("content") or ""
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        for part in parts if isinstance(parts, list) else [None]:
            if not isinstance(part, dict):
                raise ValueError("a content must be a string or a list of parts")
            if part.get("type") == "audio" and isinstance(part.get("audio"), str):
                heard.append(part["audio"])
                continue
            text = str(part.get("text") or "")
            placeholders = text.count(PLACEHOLDER) + (part.get("type") == "audio")
            found = [path for _, path in zip(range(placeholders), left, strict=False)]
            used += placeholders
            heard += found
            words.append(text.replace(PLACEHOLDER, " "))
        turns.append((message["role"], heard[-1] if heard else None, " ".join(" ".join(words).split())))
    if used != len(audios):
        raise ValueError(f'{used} times "{PLACEHOLDER}" in the messages, but {len(audios)} in "audios"')
    return turns


def _last(turns: list[tuple[str, str | None, str]], role: str, before: int) -> int:
    for index in reversed(range(before)):
        if turns[index][0] == role and turns[index][1] is not None:
            return index
    raise ValueError(f"no {role} message with audio" + (" before the answer" if before < len(turns) else ""))
