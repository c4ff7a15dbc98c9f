"""Lists, counts and sets in sentences."""

from __future__ import annotations


def listing(words: list[str]) -> str:
    """`a, b and c`."""
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + " and " + words[-1] if words else ""


def listing_some(words: list[str], most: int = 4) -> str:
    """The same, cut after a few."""
    return listing(words if len(words) <= most else [*words[: most - 1], f"{len(words) - most + 1} others"])


def plural(n: int, word: str) -> str:
    """`1 seed`, `5 seeds`, `3 groups of images`."""
    first, rest = word.split(" ", 1) if " of " in word else (word, "")
    return f"{n} {first}" + ("" if n == 1 else "s") + (f" {rest}" if rest else "")


def set_title_plain(name: str) -> str:
    """A set's name in a sentence."""
    return {"test": "test set", "val": "validation set"}.get(name, f"external set {name}")
