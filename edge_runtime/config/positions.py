"""YAML or JSON text to plain values, with the line of every key. Bounded in size, depth and aliases; runs no constructor of the text.

What YAML would silently turn into something else is named: duplicate keys, tabs, infinities, tags.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import Any

import yaml

from edge_runtime.errors import ConfigError, Problem

MAX_BYTES = 1024 * 1024
MAX_DEPTH = 32
MAX_NODES = 100_000

_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_TAG = "tag:yaml.org,2002:"
_BOOL = {"yes": True, "true": True, "on": True, "no": False, "false": False, "off": False}
_FLOAT = re.compile(r"[-+]?(\d[\d_]*)(\.\d[\d_]*)?([eE][-+]?\d+)?|[-+]?\.\d[\d_]*([eE][-+]?\d+)?")


@dataclass
class Document:
    """A parsed document: the plain value, and `lines` from dotted key path to 1-based line."""

    file: str
    value: Any = None
    lines: dict[str, int] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    words: dict[str, str] = field(default_factory=dict)  # paths whose bare word became a boolean: its text

    def line(self, path: str) -> int:
        """The line of a key, or of the nearest key above it that is there."""
        while path and path not in self.lines:
            path = re.sub(r"(\.[^.\[]*|\[\d+\])$", "", path) if re.search(r"[.\[]", path) else ""
        return self.lines.get(path, 1)

    def report(self, path: str, message: str, *, fatal: bool = True) -> None:
        """Adds a problem at a key; of several at one key the first is the cause and stays."""
        if any(problem.key == path for problem in self.problems):
            return
        self.problems.append(Problem(self.file, self.line(path), path or "(document)", message, fatal))


def parse_document(text: bytes, file: str) -> Document:
    """One document. Raises ConfigError when the text cannot be read at all; other findings are in `problems`."""
    if len(text) > MAX_BYTES:
        raise _unreadable(file, 1, f"expected at most {MAX_BYTES} bytes, got {len(text)}; is this the right file?")
    try:
        decoded = text.decode("utf-8-sig")
    except UnicodeDecodeError as err:
        raise _unreadable(file, text[: err.start].count(b"\n") + 1, f"expected UTF-8 text, got byte 0x{text[err.start]:02x}") from err
    if decoded.lstrip().startswith(("{", "[")):
        decoded = decoded.replace("\t", "  ")  # JSON may be indented with tabs; YAML may not
    document = Document(file)
    try:
        _bound_depth(decoded, file)
        node = yaml.compose(decoded, Loader=_LOADER)
    except yaml.MarkedYAMLError as err:
        mark = err.problem_mark or err.context_mark
        line = decoded.split("\n")[mark.line] if mark and mark.line < decoded.count("\n") + 1 else ""
        hint = "; indent with spaces, not tabs" if line.lstrip(" ").startswith("\t") else ""
        raise _unreadable(file, mark.line + 1 if mark else 1, f"not valid YAML: {err.problem or err.context}{hint}") from err
    except (yaml.YAMLError, ValueError, RecursionError) as err:
        raise _unreadable(file, 1, f"not valid YAML: {err}") from err
    if node is not None:
        document.value = _Builder(document).build(node, "", 0)
    return document


def _bound_depth(text: str, file: str) -> None:
    """The composer recurses on the C stack, so depth is bounded on the flat stream of events before it runs."""
    depth = 0
    for event in yaml.parse(text, Loader=_LOADER):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > MAX_DEPTH:
                line = event.start_mark.line + 1 if event.start_mark else 1
                raise _unreadable(file, line, f"more than {MAX_DEPTH} levels; a gateway's documents are far flatter")
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1


class _Builder:
    """Plain values from composed nodes. An alias counts again each time it is used, so that bombs end at the node limit."""

    def __init__(self, document: Document) -> None:
        self._document = document
        self._nodes = 0

    def build(self, node: yaml.Node, path: str, depth: int) -> Any:
        self._nodes += 1
        line = node.start_mark.line + 1
        self._document.lines.setdefault(path, line)
        if self._nodes > MAX_NODES or depth > 2 * MAX_DEPTH:
            limit = f"{MAX_NODES} values" if self._nodes > MAX_NODES else f"{2 * MAX_DEPTH} levels through aliases"
            raise _unreadable(self._document.file, line, f"more than {limit}; a gateway's documents are far smaller")
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path, depth)
        if isinstance(node, yaml.SequenceNode):
            return [self.build(item, f"{path}[{index}]", depth + 1) for index, item in enumerate(node.value)]
        return self._scalar(node, path)

    def _mapping(self, node: yaml.MappingNode, path: str, depth: int) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                self._document.report(path, "expected a plain key, got a list or a mapping as key")
                continue
            key = str(key_node.value)
            child = f"{path}.{key}" if path else key
            if key in result:
                first = self._document.lines.get(child, 1)
                line = key_node.start_mark.line + 1
                self._document.problems.append(
                    Problem(self._document.file, line, child, f"this key is here twice (first on line {first}); keep one")
                )
                continue
            self._document.lines[child] = key_node.start_mark.line + 1
            result[key] = self.build(value_node, child, depth + 1)
        return result

    def _scalar(self, node: yaml.Node, path: str) -> Any:
        text, tag = str(node.value), node.tag.removeprefix(_TAG)
        if tag == "null":
            return None
        if tag == "bool":
            if text.lower() not in ("true", "false"):
                self._document.words[path] = text
            return _BOOL[text.lower()]
        if tag in ("int", "float"):
            return self._number(text, path)
        if tag in ("str", "timestamp", "value", "merge"):
            return text
        self._document.report(path, f"tag `{node.tag}` is not allowed; write a plain value")
        return None

    def _number(self, text: str, path: str) -> Any:
        plain = text.replace("_", "")
        try:
            if plain.lstrip("+-").isdigit() and (plain.lstrip("+-") == "0" or not plain.lstrip("+-").startswith("0")):
                return int(plain) if len(plain) < 30 else float(plain)
            if _FLOAT.fullmatch(text):
                value = float(plain)
                if math.isfinite(value):
                    return value
        except ValueError:
            pass
        self._document.report(path, f"expected a finite decimal number, got `{text[:40]}`")
        return 0


def _unreadable(file: str, line: int, message: str) -> ConfigError:
    return ConfigError([Problem(file, line, "(document)", message)])
