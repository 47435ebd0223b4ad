"""YAML text to plain Python values and back, strictly: keys given twice are errors with their line. Knows no
setting and no schema.

YAML 1.1 (PyYAML) has traps that bite recipes, so words resolve as in YAML 1.2: `1e-4` is a number (PyYAML
reads text), `yes`, `no`, `on`, `off` and dates are text (labels are often called yes and no), `1:30` and
`010` are text.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

from mtdnn_ds.config.errors import ConfigError
from mtdnn_ds.config.text_files import MAX_DEPTH, MAX_DIGITS, TOO_DEEP, invisible_in, unwritable_in

# Once every alias is written out: a few lines of aliases can mean more values than any memory holds.
MAX_VALUES = 100_000
_MAX_LISTED = 10

_TAG = "tag:yaml.org,2002:"
_WORDS = {
    "null": (re.compile(r"^(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""]),
    "bool": (re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")),
    "int": (re.compile(r"^[-+]?(?:0|[1-9][0-9_]*)$"), list("-+0123456789")),
    "float": (
        re.compile(
            r"^[-+]?(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*|[0-9][0-9_]*(?=[eE]))(?:[eE][-+]?[0-9]+)?$"
            r"|^[-+]?\.(?:inf|Inf|INF)$|^\.(?:nan|NaN|NAN)$"
        ),
        list("-+0123456789."),
    ),
    "merge": (re.compile(r"^<<$"), ["<"]),
}
"""Kind of value -> (the words that mean one, what they begin with). Every other word is text."""


class _Loader(yaml.SafeLoader):
    """SafeLoader with the words above instead of YAML 1.1's."""

    yaml_implicit_resolvers = {}  # noqa: RUF012 (PyYAML's own attribute)


for _kind, (_pattern, _starts) in _WORDS.items():
    _Loader.add_implicit_resolver(f"{_TAG}{_kind}", _pattern, _starts)


class _Dumper(yaml.SafeDumper):
    """SafeDumper that quotes what either YAML version would read as something else.

    Lists of plain values are written on one line, and aliases are written out.
    """

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def represent_plain_list(self, data: list[Any]) -> yaml.SequenceNode:
        on_one_line = not any(isinstance(item, dict) for item in data)
        return self.represent_sequence(f"{_TAG}seq", data, flow_style=on_one_line)


_Dumper.add_implicit_resolver(f"{_TAG}float", *_WORDS["float"])
_Dumper.add_representer(list, _Dumper.represent_plain_list)


def parse_yaml(text: str, source: str) -> Any:
    """The document's value. `source` names the file in messages.

    Raises ConfigError, with lines, for bad syntax, for keys given twice and for what no setting can be.
    """
    loader = _Loader(text)  # reads no file, so it cannot fail before the first token
    try:
        node = loader.get_single_node()
        if node is None:
            return None

        problems = [f"{source}:{line}: {what}" for line, what in _unreadable(node)]
        if not problems:
            repeated = _duplicate_keys(node)
            problems = [f"{source}:{line}: key '{key}' is given twice; keep one" for key, line in repeated]
        if problems:
            raise ConfigError(problems)

        return loader.construct_document(node)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        problem = error.problem or error.context
        raise ConfigError(f"{source}:{line}: not valid YAML: {problem}") from None
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


def duplicate_keys(text: str) -> list[tuple[str, int]]:
    """(key, 1-based line of the second occurrence) for every key that a mapping of this text gives twice.

    Empty for text that is no YAML.
    """
    try:
        node = yaml.compose(text, Loader=_Loader)
    except (yaml.YAMLError, RecursionError):
        return []
    return _duplicate_keys(node)


def dump_yaml(value: Any) -> str:
    """Plain values as YAML that parse_yaml reads back as they were.

    Text that looks like a number or a word of YAML is quoted.
    """
    text = _written(value, allow_unicode=True)
    if invisible_in(text) is None:
        return text
    return _written(value, allow_unicode=False)  # as escapes: read_text refuses them as they are


def _written(value: Any, *, allow_unicode: bool) -> str:
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=allow_unicode, width=160)


def _unreadable(root: yaml.Node) -> list[tuple[int, str]]:
    """(line, what is wrong) for what would take for ever to read, or what no setting can be.

    Checked before any value is made. An anchor is looked into once.
    """
    found: list[tuple[int, str]] = []
    sizes: dict[int, tuple[int, int]] = {}  # of a node: how many values it means, and how deep they go

    def look(node: yaml.Node, above: tuple[int, ...]) -> tuple[int, int]:
        line = node.start_mark.line + 1
        if id(node) in above:
            found.append((line, "this value contains itself through its alias; write it out"))
            return 1, 1

        if id(node) not in sizes:
            if isinstance(node, yaml.ScalarNode):
                found.extend((line, what) for what in _scalar_problems(node))
            parts = _parts(node) if len(above) < MAX_DEPTH else []
            inner = [look(part, (*above, id(node))) for part in parts]
            num_values = min(1 + sum(num for num, _ in inner), 10 * MAX_VALUES)
            sizes[id(node)] = num_values, 1 + max((depth for _, depth in inner), default=0)

        if len(above) + sizes[id(node)][1] > MAX_DEPTH:
            found.append((line, TOO_DEEP))
        return sizes[id(node)]

    num_values, _ = look(root, ())
    if num_values > MAX_VALUES:
        found.append((1, f"holds more than {MAX_VALUES:,} values, aliases written out; make it smaller"))
    return list({what: (line, what) for line, what in found}.values())[:_MAX_LISTED]


def _parts(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [part for pair in node.value for part in pair]
    if isinstance(node, yaml.SequenceNode):
        return list(node.value)
    return []


def _scalar_problems(node: yaml.ScalarNode) -> list[str]:
    """A tag that is not ours or does not fit its value, a very long number, and text that nothing takes."""
    kind = node.tag.removeprefix(_TAG)
    if kind not in ("str", *_WORDS):
        return [f"tag '{node.tag[:60]}' has no meaning here; remove it"]
    if kind not in ("str", "merge") and _WORDS[kind][0].match(node.value) is None:
        return [f"'{node.value[:60]}' is no {kind}, as its tag says; remove the tag"]
    if kind == "int" and len(node.value) > MAX_DIGITS:
        return [f"a number of {len(node.value):,} digits; write a smaller one"]
    problem = unwritable_in(node.value)
    if problem is not None:
        return [problem]
    return []


def _duplicate_keys(node: yaml.Node | None) -> list[tuple[str, int]]:
    found: list[tuple[str, int]] = []
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != f"{_TAG}merge":
                if key.value in seen:
                    found.append((key.value[:60], key.start_mark.line + 1))
                seen.add(key.value)
            found += _duplicate_keys(value)
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            found += _duplicate_keys(item)
    return found
