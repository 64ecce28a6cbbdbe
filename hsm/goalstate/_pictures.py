"""Pictures: names as the languages of diagrams want them."""

from __future__ import annotations

import enum

__all__ = ["dot_quoted", "mermaid_quoted", "name_of"]


def name_of(value: object) -> str:
    """What people call a state or a goal."""
    return value.name if isinstance(value, enum.Enum) else str(value)


def mermaid_quoted(text: str) -> str:
    """A text that may hold anything, in Mermaid."""
    return '"' + text.replace("&", "#amp;").replace('"', "#quot;").replace("\n", " ") + '"'


def dot_quoted(text: str) -> str:
    """A text that may hold anything, in the language of Graphviz."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", " ") + '"'
