"""Every key of a study file as a page of Markdown, made from the schema."""

from __future__ import annotations

import json
from collections.abc import Iterator

from cellray.study.problems import Schema
from cellray.study.schema import study_schema

HEAD = """# Every key of a study file

Made by `make keys` from the schema that checks study files; `cellray schema` prints that one for editors. A key without
a default must be given. `cellray init` writes a study file for a folder of images; `search_spaces/` has more of them.
"""
COMPARISONS = {"exclusiveMinimum": "> ", "minimum": ">= ", "exclusiveMaximum": "< ", "maximum": "<= "}
NO_LIMIT = 2**31
"""A limit that nobody reaches isn't told."""
TYPES = {
    "string": "text", "integer": "whole number", "number": "number", "boolean": "true or false", "object": "mapping",
    "null": "null",
}  # fmt: skip


def key_page() -> str:
    """The page: one section a group of keys, one row a key."""
    schema = study_schema()
    parts = [HEAD]
    for name, (group, places) in _groups(schema).items():
        title = ", ".join(f"`{place}`" for place in places) if name else "The file"
        about = " ".join(str(group.get("description", "")).split())
        parts.append(f"## {title}\n\n{about}\n")
        required = group.get("required", [])
        rows = ["| key | value | default | |", "| --- | --- | --- | --- |"]
        for key, place in group["properties"].items():
            default = "required" if key in required else _default(place.get("default", {}))
            words = " ".join(str(place["description"]).replace("``", "`").split()).replace("|", "\\|")
            rows.append(f"| `{key}` | {_kind(place, schema)} | {default} | {words} |")
        parts.append("\n".join(rows) + "\n")
    return "\n".join(parts)


def _groups(schema: Schema) -> dict[str, tuple[Schema, list[str]]]:
    """Each group of keys once, in the order of the file, with the places where it stands; '' is the file itself."""
    found: dict[str, tuple[Schema, list[str]]] = {"": (schema, [""])}

    def visit(group: Schema, path: str) -> None:
        for key, place in group["properties"].items():
            for name, ending in _references(place):
                below, known = f"{path}{key}{ending}", name in found
                found.setdefault(name, (schema["$defs"][name], []))[1].append(below)
                if not known:
                    visit(schema["$defs"][name], f"{below}.")

    visit(schema, "")
    return found


def _references(place: Schema, ending: str = "") -> Iterator[tuple[str, str]]:
    """Groups that a key holds: each one's name, and `[]` in a list or `.…` in a mapping."""
    if "$ref" in place:
        yield place["$ref"].rsplit("/", 1)[-1], ending
    for part in place.get("anyOf", []):
        yield from _references(part, ending)
    if "items" in place:
        yield from _references(place["items"], "[]")
    if isinstance(place.get("additionalProperties"), dict):
        yield from _references(place["additionalProperties"], ".…")


def _kind(place: Schema, schema: Schema) -> str:
    """What a key takes, in words."""
    if "$ref" in place:
        return "keys of its own"
    if "anyOf" in place:
        kinds = [_kind(part, schema) for part in place["anyOf"] if part.get("type") != "null"]
        return " or ".join(dict.fromkeys(kinds))
    if "const" in place:
        return f"`{place['const']}`"
    if "enum" in place:
        return ", ".join(f"`{value}`" for value in place["enum"])
    if place.get("type") == "array":
        inner = _kind(place["items"], schema) if place.get("items") else "values"
        return f"list: {inner}" if inner != "keys of its own" else "list, each with keys of its own"
    if place.get("pattern") == ":":
        return "`package.module:name`"
    limits = [f"{sign}{place[name]:g}" for name, sign in COMPARISONS.items() if place.get(name, NO_LIMIT) < NO_LIMIT]
    if "multipleOf" in place:
        limits.append(f"a multiple of {place['multipleOf']}")
    return TYPES[place["type"]] + (f", {', '.join(limits)}" if limits else "")


def _default(value: object) -> str:
    """A default as a study file would write it; a group's own keys have theirs."""
    if value is None:
        return "none"
    if isinstance(value, dict) and value:
        return "its own"
    return f"`{json.dumps(value, ensure_ascii=False)}`" if value != {} else "none"
