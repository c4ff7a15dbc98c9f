"""YAML as this project reads and writes it: version 1.2's plain values, no repeated keys, lines kept."""

from __future__ import annotations

import pathlib
import re

import yaml

from cellray.errors import StudyError
from cellray.storage import read_plain
from cellray.study.problems import Path

_TAGS = {f"tag:yaml.org,2002:{name}" for name in ("null", "bool", "int", "float", "str", "seq", "map", "merge")}
MAX_STUDY_BYTES = 1_000_000
MAX_NODES = 100_000
"""More than any study needs; stops a file whose aliases multiply."""

_PLAIN = [
    ("null", r"^(?:~|null|Null|NULL|)$", ["~", "n", "N", ""]),
    ("bool", r"^(?:true|True|TRUE|false|False|FALSE)$", list("tTfF")),
    ("int", r"^(?:[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)$", list("-+0123456789")),
    (
        "float",
        r"^(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$",
        list("-+.0123456789"),
    ),
    ("merge", r"^<<$", ["<"]),
]


class _Loader(yaml.SafeLoader):
    """Reads 1e-3 as a number and `yes`, `on`, 12:30 and 2024-01-01 as text, as YAML 1.2 does."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 (so in the base class)


class _Dumper(yaml.SafeDumper):
    """Quotes text that YAML 1.1 or 1.2 would read as something else."""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        super().increase_indent(flow, False)


for _tag, _pattern, _first in _PLAIN:
    for _side in (_Loader, _Dumper):
        _side.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(_pattern), _first)


def _whole_number(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    text = loader.construct_scalar(node)
    return int(text, 0) if text[:2] in ("0o", "0x") else int(text)  # 010 is ten, not eight


_Loader.add_constructor("tag:yaml.org,2002:int", _whole_number)


def read_tree(text: str) -> tuple[object, yaml.Node | None]:
    """Plain values of a YAML text, and its nodes, which know their lines.

    Raises:
        StudyError: With ``LINE: `` in front, if the text isn't one safe YAML document with distinct keys.
    """
    loader = None
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None, None
        _check_keys(node)
        return loader.construct_document(node), node
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = "" if mark is None else f"{mark.line + 1}: "
        context = f" {error.context}" if error.context else ""
        raise StudyError(f"{line}not valid YAML: {error.problem}{context}") from None
    except yaml.reader.ReaderError as error:
        raise StudyError(f"1: not valid YAML: {error.reason} at character {error.position}") from None
    except RecursionError:
        raise StudyError("1: not a study: nested too deeply") from None
    except ValueError as error:
        if isinstance(error, StudyError):
            raise
        raise StudyError(f"1: not valid YAML: {error}") from None
    finally:
        if loader is not None:
            loader.dispose()


def name_in(file: pathlib.Path) -> str:
    """The name that a study file gives, without a look at the rest; empty where it has none, or can't be read."""
    try:
        tree, _ = read_tree(read_plain(file, MAX_STUDY_BYTES).decode())
    except (OSError, StudyError, UnicodeDecodeError):
        return ""
    name = tree.get("name") if isinstance(tree, dict) else None
    return name if isinstance(name, str) and "/" not in name else ""


def _check_keys(root: yaml.Node) -> None:
    """Refuse repeated keys, keys that aren't text, tags, and trees too large to be meant."""
    waiting, n_nodes = [root], 0
    while waiting:
        node = waiting.pop()
        n_nodes += 1
        if n_nodes > MAX_NODES:
            raise StudyError(f"{node.start_mark.line + 1}: not a study: more than {MAX_NODES} values")
        if node.tag not in _TAGS:
            raise StudyError(f"{node.start_mark.line + 1}: the tag {node.tag!r} is not allowed; write the plain value")
        if isinstance(node, yaml.ScalarNode):
            _check_text(node)
        elif isinstance(node, yaml.SequenceNode):
            waiting += node.value
        elif isinstance(node, yaml.MappingNode):
            first: dict[str, int] = {}
            for key, value in node.value:
                line = key.start_mark.line + 1
                if key.tag not in ("tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"):
                    raise StudyError(
                        f"{line}: {getattr(key, 'value', 'a list')!r}: a key must be text; put it in quotes"
                    )
                if key.value in first:
                    raise StudyError(f"{line}: {key.value}: this key is given twice, first in line {first[key.value]}")
                _check_text(key)
                first[key.value] = line
                waiting.append(value)


def _check_text(node: yaml.ScalarNode) -> None:
    half = next((c for c in node.value if "\ud800" <= c <= "\udfff"), None)
    if half is not None:
        words = f"\\u{ord(half):04x} is half of a character (a surrogate); write the character itself"
        raise StudyError(f"{node.start_mark.line + 1}: not valid text: {words}")


def line_of(root: yaml.Node | None, path: Path) -> int:
    """Line of the key or list entry at `path`, or of the nearest thing above it that the file has."""
    line, node = 1 if root is None else root.start_mark.line + 1, root
    for part in path:
        if isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
            line = node.start_mark.line + 1
        elif isinstance(node, yaml.MappingNode) and (pair := _pair(node, part)):
            key, node = pair
            line = key.start_mark.line + 1
        else:
            return line
    return line


def _pair(node: yaml.MappingNode, name: str | int) -> tuple[yaml.Node, yaml.Node] | None:
    # Constructing the values has already copied merged keys (<<) into the mapping, ahead of its own.
    return next(((key, value) for key, value in reversed(node.value) if key.value == name), None)


def write_tree(values: object) -> str:
    """Block-style YAML of plain values, in their order."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)
