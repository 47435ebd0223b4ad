"""YAML text to plain Python values, strictly: duplicate keys are errors with their line. Knows no setting and no schema.

YAML 1.1 (PyYAML) has traps that bite recipes, so words resolve as in YAML 1.2: `1e-4` is a number (PyYAML reads text),
`yes`, `no`, `on`, `off` and dates are text (labels are often called yes and no), `1:30` and `010` are text.
"""

from __future__ import annotations

import os
import re
import stat
from typing import Any

import yaml

from mtdnn_ds.config.errors import ConfigError

MAX_BYTES = 2**19  # of a recipe or a DeepSpeed JSON; real ones have a few thousand
MAX_DEPTH = 50  # mappings and lists within each other; a recipe needs six
MAX_VALUES = 100_000  # once every alias is written out: a few lines of aliases can mean more values than any memory holds
TOO_DEEP = f"values are nested more than {MAX_DEPTH} deep; write them flatter"
MAX_DIGITS = 400  # of a whole number; a 64-bit one has 20

_NULL = re.compile(r"^(?:~|null|Null|NULL|)$")
_BOOL = re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$")
_INT = re.compile(r"^[-+]?(?:0|[1-9][0-9_]*)$")
_FLOAT = re.compile(
    r"^[-+]?(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*|[0-9][0-9_]*(?=[eE]))(?:[eE][-+]?[0-9]+)?$|^[-+]?\.(?:inf|Inf|INF)$|^\.(?:nan|NaN|NAN)$"
)


UNWRITABLE = re.compile(
    "[\x00\ud800-\udfff]"
)  # YAML's and JSON's escapes can spell them, no file name and no tokenizer takes them
_MAX_LISTED = 10


class GivenText(str):
    """What stands in a recipe or a DeepSpeed JSON that a program gives instead of a file's path.

    As a text it is the name that messages call it by; `content` is what would stand in the file.
    """

    content: str

    def __new__(cls, name: str, content: str) -> GivenText:
        text = super().__new__(cls, name)
        text.content = content
        return text


class _Loader(yaml.SafeLoader):
    """SafeLoader with the resolvers above instead of YAML 1.1's."""

    yaml_implicit_resolvers = {}  # noqa: RUF012 (PyYAML's own attribute)


_Loader.add_implicit_resolver("tag:yaml.org,2002:null", _NULL, ["~", "n", "N", ""])
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", _BOOL, list("tTfF"))
_Loader.add_implicit_resolver("tag:yaml.org,2002:int", _INT, list("-+0123456789"))
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789."))
_Loader.add_implicit_resolver("tag:yaml.org,2002:merge", re.compile(r"^<<$"), ["<"])


def parse_nodes(text: str) -> yaml.Node:
    """The syntax tree of text that is known to be sound and not empty; for line numbers."""
    node = yaml.compose(text, Loader=_Loader)
    assert node is not None
    return node


class _Dumper(yaml.SafeDumper):
    """SafeDumper that quotes what either YAML version would read as something else, and writes lists of plain values on one line."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


_Dumper.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789."))
_Dumper.add_representer(
    list,
    lambda dumper, data: dumper.represent_sequence(
        "tag:yaml.org,2002:seq", data, flow_style=not any(isinstance(item, dict) for item in data)
    ),
)


def parse_yaml(text: str, source: str) -> Any:
    """The document's value. `source` names the file in messages. Raises ConfigError for bad syntax and for duplicate keys, with the line."""
    loader = _Loader(text)  # reads no file, so it cannot fail before the first token
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        problems = [f"{source}:{line}: {what}" for line, what in _unreadable(node)]
        if problems:
            raise ConfigError(problems)
        problems = [
            f"{source}:{line}: key '{key}' is given twice; keep one" for key, line in duplicate_keys(node)
        ]
        if problems:
            raise ConfigError(problems)
        return loader.construct_document(node)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise ConfigError(
            f"{source}:{mark.line + 1 if mark else 1}: not valid YAML: {error.problem or error.context}"
        ) from None
    except RecursionError:
        raise ConfigError(f"{source}: {TOO_DEEP}") from None
    finally:
        loader.dispose()


def parse_scalar(text: str) -> Any:
    """One value as YAML sees it, e.g. the text after a flag; text that is no YAML value stays as it is."""
    try:
        return parse_yaml(text, "")
    except (ConfigError, yaml.YAMLError):
        return text


def dump_yaml(value: Any) -> str:
    """Plain values as YAML that parse_yaml reads back as they were: text that looks like a number or a word of YAML is quoted."""
    text = yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=160)
    if _invisible_in(text) is None:
        return text
    return yaml.dump(
        value, Dumper=_Dumper, sort_keys=False, allow_unicode=False, width=160
    )  # as escapes: read_text refuses them as they are


def _unreadable(root: yaml.Node) -> list[tuple[int, str]]:
    """(line, what is wrong) for what would take for ever to read, or what no setting can be: checked before any value is made."""
    found: list[tuple[int, str]] = []
    seen: dict[
        int, tuple[int, int]
    ] = {}  # node -> how many values it means, and how deep they go: an anchor is looked into once

    def look(node: yaml.Node, above: tuple[int, ...]) -> tuple[int, int]:
        line = node.start_mark.line + 1
        if id(node) in above:
            found.append((line, "this value contains itself through its alias; write it out"))
            return 1, 1
        if id(node) not in seen:
            parts = (
                [part for pair in node.value for part in pair]
                if isinstance(node, yaml.MappingNode)
                else node.value
            )
            if isinstance(node, yaml.ScalarNode):
                found.extend((line, what) for what in _scalar_problems(node))
                parts = []
            looked = [] if len(above) >= MAX_DEPTH else [look(part, (*above, id(node))) for part in parts]
            seen[id(node)] = (
                min(1 + sum(num for num, _ in looked), 10 * MAX_VALUES),
                1 + max((depth for _, depth in looked), default=0),
            )
        if len(above) + seen[id(node)][1] > MAX_DEPTH:
            found.append((line, TOO_DEEP))
        return seen[id(node)]

    num_values, _ = look(root, ())
    if num_values > MAX_VALUES:
        found.append((1, f"holds more than {MAX_VALUES:,} values, aliases written out; make it smaller"))
    return list({what: (line, what) for line, what in found}.values())[:_MAX_LISTED]


def _scalar_problems(node: yaml.ScalarNode) -> list[str]:
    """What PyYAML's own readers of a tagged or very long scalar would not take, and text that no file name and no tokenizer takes."""
    kind = node.tag.removeprefix("tag:yaml.org,2002:")
    pattern = {"null": _NULL, "bool": _BOOL, "int": _INT, "float": _FLOAT}.get(kind)
    if pattern is None and kind not in ("str", "merge"):
        return [f"tag '{node.tag[:60]}' has no meaning here; remove it"]
    if pattern is not None and pattern.match(node.value) is None:
        return [f"'{node.value[:60]}' is no {kind}, as its tag says; remove the tag"]
    if kind == "int" and len(node.value) > MAX_DIGITS:
        return [f"a number of {len(node.value):,} digits; write a smaller one"]
    bad = UNWRITABLE.search(node.value)
    return [f"text holds U+{ord(bad[0]):04X}, which is no character; remove it"] if bad else []


def duplicate_keys(node: yaml.Node) -> list[tuple[str, int]]:
    """(key, 1-based line of the second occurrence) for every key that a mapping of this document gives twice."""
    found: list[tuple[str, int]] = []
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if key.value in seen:
                    found.append((key.value[:60], key.start_mark.line + 1))
                seen.add(key.value)
            found += duplicate_keys(value)
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            found += duplicate_keys(item)
    return found


def read_text(path: str, what: str) -> str:
    """The text of a user's file, or of a GivenText. `what` says in messages what the file was meant to be, e.g. "recipe"."""
    try:
        content = _read_bytes(path, what)
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text (byte {error.start}); save the {what} as UTF-8") from None
    except FileNotFoundError:
        raise ConfigError(f"{path}: there is no such {what}; give the path of an existing file") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot read this {what}: {error.strerror or error}") from None
    except ValueError:  # a path with U+0000, or one that its file system cannot spell
        raise ConfigError(
            f"{path!r}: no file can have this name; give the path of an existing file"
        ) from None
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    bad = _invisible_in(text)
    if bad is not None:
        line = text.count("\n", 0, bad) + 1
        raise ConfigError(
            f"{path}:{line}: character U+{ord(text[bad]):04X} does not belong in a {what}; remove it"
        )
    return text


def _invisible_in(text: str) -> int | None:
    return next(
        (index for index, letter in enumerate(text) if not letter.isprintable() and letter not in "\t\n"),
        None,
    )


def _read_bytes(path: str, what: str) -> bytes:
    if isinstance(path, GivenText):
        return path.content.encode()

    # Not blocking: opening a named pipe would else wait for a writer, before anybody can see that it is one.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        kind = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(kind) and not stat.S_ISDIR(kind):
            raise ConfigError(
                f"{path}: is a pipe or a device, and a {what} is read more than once; save it to a file"
            )
        with open(descriptor, "rb", closefd=False) as stream:
            content = stream.read(MAX_BYTES + 1)
    finally:
        os.close(descriptor)
    if len(content) > MAX_BYTES:
        raise ConfigError(
            f"{path}: is larger than {MAX_BYTES // 2**10} KiB, so it is no {what}; give the right file"
        )
    return content
