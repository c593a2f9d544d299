"""YAML to plain data, with the position of every key and value. Nothing in the file is constructed or executed.

Plain scalars are read by the core schema of YAML 1.2: `yes`, `on` and `1:30` are texts, `1e-3` is a number.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import Any

import yaml

from mcgen.errors import Diagnostic, SpecError
from mcgen.spec.source import Position, Source, scalar_position

Path = tuple[str | int, ...]

MAX_BYTES = 1 << 18
MAX_DEPTH = 20
MAX_NODES = 5000
MAX_DIGITS = 18

_INTEGER = re.compile(r"[-+]?[0-9]+|0x[0-9a-fA-F]+|0o[0-7]+")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")
_NOT_FINITE = re.compile(r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)")
_WORDS = {"": None, "~": None, "null": None, "Null": None, "NULL": None}
_WORDS |= {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_SURROGATE = re.compile("[\ud800-\udfff]")
_PLAIN = "plain"
_TEXT, _SEQUENCE, _MAPPING = "text", "sequence", "mapping"


@dataclass(frozen=True)
class Document:
    """A file as plain data: dicts, lists, strings, numbers, booleans and None.

    `values` and `keys` say where the value, and its key in the mapping above, stand for each path. `diagnostics` are
    the faults found on the way that did not stop the reading.
    """

    source: Source
    data: dict[str, Any]
    values: dict[Path, Position]
    keys: dict[Path, Position]
    diagnostics: tuple[Diagnostic, ...] = ()
    broken: frozenset[Path] = frozenset()
    """Values that could not be read, None in the data, each with its diagnostic."""

    def section(self, name: str) -> dict[str, Any]:
        """The mapping at a top-level key; empty where there is none, or something else."""
        value = self.data.get(name)
        return value if isinstance(value, dict) else {}

    def nearest(self, path: Path) -> Position:
        """The position of the value at `path`, or of the closest value above it."""
        while path not in self.values:
            path = path[:-1]
        return self.values[path]

    def key(self, path: Path) -> Position:
        """The position of the key at `path`, or of the nearest value."""
        return self.keys.get(path) or self.nearest(path)


def read_document(source: Source) -> Document:
    """Read a file that holds one mapping.

    Raises:
        SpecError: not YAML, not a mapping, or beyond the limits of size and depth.
    """
    root = _compose(source)
    if not isinstance(root, yaml.MappingNode):
        index = root.start_mark.index if root else 0
        hint = "a spec is a mapping: start with `mcgen: 1` and `name: …`"
        raise SpecError(
            source.diagnose(index, "a spec is a mapping of fields" if root else "the file is empty", hint=hint)
        )
    reader = _Reader(source)
    data = reader.value(root, ())
    return Document(source, data, reader.values, reader.keys, tuple(reader.diagnostics), frozenset(reader.broken))


class _Composer(yaml.BaseLoader):
    """PyYAML's composer with limits, which tells plain scalars from quoted ones by their tag."""

    depth = 0
    count = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self.depth += 1
        self.count += 1
        if self.depth > MAX_DEPTH or self.count > MAX_NODES:
            message = f"more than {MAX_NODES} values, or more than {MAX_DEPTH} levels of them"
            raise yaml.composer.ComposerError(None, None, message, self.peek_event().start_mark)
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def resolve(self, kind: type[yaml.Node], value: str, implicit: tuple[bool, bool]) -> str:
        if kind is yaml.ScalarNode:
            return _PLAIN if implicit[0] else _TEXT
        return _SEQUENCE if kind is yaml.SequenceNode else _MAPPING


_HINTS = {
    "cannot start any token": "quote the text; indent with spaces, not tabs",
    "mapping values are not allowed": "quote a text that holds `: `, and check the indentation",
    "expected a single document": "one spec a file",
    "could not find expected ':'": "is a colon missing?",
    "expected ',' or": "is a bracket or a comma missing? Quote texts that hold one",
    "expected <block end>": "check the indentation",
    "expected '<document start>'": "quote a text that holds quotes",
}


def _compose(source: Source) -> yaml.Node | None:
    if len(source.text) > MAX_BYTES:
        raise SpecError(Diagnostic("error", f"a spec of more than {MAX_BYTES} bytes", source.file))
    composer = None
    try:
        composer = _Composer(source.text)
        return composer.get_single_node()
    except yaml.reader.ReaderError as error:
        character = f"U+{error.character:04X}" if isinstance(error.character, int) else repr(error.character)
        raise SpecError(source.diagnose(error.position, f"the character {character} is not allowed in YAML")) from None
    except yaml.MarkedYAMLError as error:
        raise SpecError(_syntax_diagnostic(source, error)) from None
    except (ValueError, OverflowError):
        index = composer.index if composer else 0
        raise SpecError(source.diagnose(index, "not valid YAML: an escape that is no character")) from None


def _syntax_diagnostic(source: Source, error: yaml.MarkedYAMLError) -> Diagnostic:
    mark, problem = error.problem_mark or error.context_mark, error.problem or error.context or "cannot be read"
    if problem.startswith("but ") and error.context:
        problem = f"{error.context}, {problem}"
    hint = next((hint for piece, hint in _HINTS.items() if piece in problem), "")
    return source.diagnose(mark.index if mark else 0, f"not valid YAML: {problem}", hint=hint)


@dataclass
class _Reader:
    """Walks the nodes once, filling the data and the positions."""

    source: Source
    values: dict[Path, Position] = field(default_factory=dict)
    keys: dict[Path, Position] = field(default_factory=dict)
    diagnostics: list[Diagnostic] = field(default_factory=list)
    broken: set[Path] = field(default_factory=set)

    def value(self, node: yaml.Node, path: Path) -> Any:
        self.values[path] = self.position(node)
        if len(self.values) > MAX_NODES or len(path) > MAX_DEPTH:
            raise SpecError(self.values[path].diagnose("aliases repeat too many values"))
        if node.tag not in (_PLAIN, _TEXT, _SEQUENCE, _MAPPING):
            start, message = node.start_mark.index, f"a tag, {node.tag}"
            self.diagnostics.append(self.source.diagnose(start, message, hint="a spec has no YAML tags"))
        if isinstance(node, yaml.MappingNode):
            return self.mapping(node, path)
        if isinstance(node, yaml.SequenceNode):
            return [self.value(item, (*path, index)) for index, item in enumerate(node.value)]
        return self.scalar(node, path)

    def mapping(self, node: yaml.MappingNode, path: Path) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key, value in node.value:
            name = key.value if isinstance(key, yaml.ScalarNode) else None
            if name is None or _SURROGATE.search(name):
                self.report(key, "a key is a name", "quote it, or remove the brackets")
            elif name in result:
                line = self.keys[(*path, name)].place[0]
                self.report(key, f"`{name}` stands twice", f"first on line {line}")
            else:
                self.keys[(*path, name)] = self.position(key)
                result[name] = self.value(value, (*path, name))
        return result

    def scalar(self, node: yaml.ScalarNode, path: Path) -> Any:
        try:
            text = _joined(node.value)
            return text if node.tag != _PLAIN or _is_text(path) else _plain(text)
        except _BadScalar as error:
            self.report(node, *error.args)
            self.broken.add(path)
            return None

    def position(self, node: yaml.Node) -> Position:
        start, end = node.start_mark.index, node.end_mark.index
        if isinstance(node, yaml.ScalarNode):
            return scalar_position(self.source, start, end, node.style, node.value)
        return Position(self.source, start, end)

    def report(self, node: yaml.Node, message: str, hint: str = "") -> None:
        self.diagnostics.append(self.position(node).diagnose(message, hint=hint))


class _BadScalar(Exception):
    """Message and hint of a scalar that has no value."""


def _joined(text: str) -> str:
    """The text with pairs of surrogates, which JSON writes as two escapes, made the characters they stand for."""
    if not _SURROGATE.search(text):
        return text
    try:
        return text.encode("utf-16", "surrogatepass").decode("utf-16")
    except UnicodeDecodeError:
        raise _BadScalar("half of a surrogate pair is no character") from None


def _plain(text: str) -> Any:
    """The value of a scalar without quotes."""
    if text in _WORDS:
        return _WORDS[text]
    if _INTEGER.fullmatch(text):
        if len(text) > MAX_DIGITS:
            raise _BadScalar("a number too large", f"at most {MAX_DIGITS} digits")
        return int(text, 0) if text[:2] in ("0x", "0o") else int(text)
    if _NOT_FINITE.fullmatch(text) or (_FLOAT.fullmatch(text) and math.isinf(float(text))):
        raise _BadScalar(f"{text[:MAX_DIGITS]} is not a finite number")
    return float(text) if _FLOAT.fullmatch(text) else text


def _is_text(path: Path) -> bool:
    """Fields that hold any text, even one that looks like a number."""
    return path == ("doc",) or path[-1:] == ("per_head",)
