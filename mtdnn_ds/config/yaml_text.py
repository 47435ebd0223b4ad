"""YAML text to plain Python values, strictly: duplicate keys are errors with their line. Knows no setting and no schema.

YAML 1.1 (PyYAML) has traps that bite recipes, so words resolve as in YAML 1.2: `1e-4` is a number (PyYAML reads text),
`yes`, `no`, `on`, `off` and dates are text (labels are often called yes and no), `1:30` and `010` are text.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

from mtdnn_ds.config.errors import ConfigError

_NULL = re.compile(r"^(?:~|null|Null|NULL|)$")
_BOOL = re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$")
_INT = re.compile(r"^[-+]?(?:0|[1-9][0-9_]*)$")
_FLOAT = re.compile(
    r"^[-+]?(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*|[0-9][0-9_]*(?=[eE]))(?:[eE][-+]?[0-9]+)?$|^[-+]?\.(?:inf|Inf|INF)$|^\.(?:nan|NaN|NAN)$"
)


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
        problems = [f"{source}:{line}: key '{key}' is given twice; keep one" for key, line in duplicate_keys(node)]
        if problems:
            raise ConfigError(problems)
        return loader.construct_document(node)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise ConfigError(f"{source}:{mark.line + 1 if mark else 1}: not valid YAML: {error.problem or error.context}") from None
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
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=160)


def duplicate_keys(node: yaml.Node) -> list[tuple[str, int]]:
    """(key, 1-based line of the second occurrence) for every key that a mapping of this document gives twice."""
    found: list[tuple[str, int]] = []
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if key.value in seen:
                    found.append((key.value, key.start_mark.line + 1))
                seen.add(key.value)
            found += duplicate_keys(value)
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            found += duplicate_keys(item)
    return found


def read_text(path: str, what: str) -> str:
    """The text of a user's file. `what` says in messages what the file was meant to be, e.g. "recipe"."""
    try:
        with open(path, encoding="utf-8-sig") as stream:  # noqa: PTH123 (a Path would change how messages show the name)
            text = stream.read()
    except FileNotFoundError:
        raise ConfigError(f"{path}: there is no such {what}; give the path of an existing file") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text (byte {error.start}); save the {what} as UTF-8") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot read this {what}: {error.strerror or error}") from None
    bad = next((index for index, letter in enumerate(text) if not letter.isprintable() and letter not in "\t\n\r"), None)
    if bad is not None:
        line = text.count("\n", 0, bad) + 1
        raise ConfigError(f"{path}:{line}: character U+{ord(text[bad]):04X} does not belong in a {what}; remove it")
    return text
