"""Random inputs for config/test_fuzz.py: values, changed recipes and JSONs, torn files.

Draws only; what must become of them is said there.

Most inputs are whole ones with one to three things changed, so that they get past the first check and reach
the later ones.
"""

from __future__ import annotations

import copy
import json
import os
import re
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, Literal, get_args, get_origin

import yaml
from hypothesis import HealthCheck, event, settings
from hypothesis import strategies as st

from mtdnn_ds.config.errors import UserError
from mtdnn_ds.config.schema import annotation_at, field_docs, member_types

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "40"))
fuzz = settings(
    max_examples=EXAMPLES,
    derandomize=True,  # the seed is the test's name
    database=None,
    deadline=timedelta(seconds=30),  # a hang fails
    suppress_health_check=list(HealthCheck),
)

HOSTILE_TEXTS = [
    "", " ", "0", "-1", "1e400", "nan", "auto", "null", "true", "..", "../..", "/", "/dev/null", "~",
    "~nobody_here/x", "a\x00b", "\ud800", "\udcff",
    "[", "{}", "a: b", "\t", "a\nb", "é", "\u202e", "\U0001f600", "a" * 300, "a" * 5000, "a/" * 3000,
    "package:", "package:yaml", "package:a.b",
    "cola", "rte", "mnli_mm", "ax", "average", "best/average", "best/../..", "step_1", "latest", "adamw",
    "encoder.layer.5-1", "heads.", "1_000",
]  # fmt: skip
NUMBERS = [
    0, 1, -1, 2, 7, 8, 2**20, 2**20 + 1, 2**31, 2**32, 2**53, 2**63, 2**64, 10**30, 10**400, -(2**63),
    0.0, -0.0, 0.1, 0.5, 1.0, 1.5, 1e-320, 1e-30, 1e16, 1e19, 1e30, 1e308, -1e308,
    float("nan"), float("inf"), float("-inf"),
]  # fmt: skip

texts = st.one_of(st.sampled_from(HOSTILE_TEXTS), st.text(max_size=12))
numbers = st.one_of(st.sampled_from(NUMBERS), st.integers(-(2**70), 2**70), st.floats(), st.integers(0, 100))
whole_numbers = st.sampled_from([number for number in NUMBERS if isinstance(number, int)])
scalars = st.one_of(st.none(), st.booleans(), numbers, texts)
keys = st.one_of(st.text(max_size=8), st.sampled_from(HOSTILE_TEXTS))
values = st.recursive(
    scalars, lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(keys, inner, max_size=3))
)


def deep(depth: int) -> Any:
    value: Any = 1
    for level in range(depth):
        value = [value] if level % 2 else {"a": value}
    return value


def places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in nested dicts and lists, as keys from the outside in."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [at, *(place for key, item in inner for place in places(item, (*at, key)))]


@st.composite
def changed(draw: st.DrawFn, originals: Sequence[Any], new: st.SearchStrategy[Any] = values) -> Any:
    """One of `originals` with one to three of its values replaced, removed, or joined by another."""
    value = copy.deepcopy(draw(st.sampled_from(originals)))
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.sampled_from([place for place in places(value) if place] or [()]))
        if not place:
            return draw(new)
        holder = value
        for key in place[:-1]:
            holder = holder[key]
        action = draw(st.sampled_from(["replace", "remove", "add", "copy"]))
        if action == "remove":
            del holder[place[-1]]
        elif action == "add" and isinstance(holder, dict):
            holder[draw(st.one_of(keys, st.sampled_from(["train", "tasks", "steps", "kind", "stages"])))] = (
                draw(new)
            )
        elif action == "add":
            holder.insert(place[-1], draw(new))
        elif action == "copy":  # of another part of the same
            source = draw(st.sampled_from(places(value)))
            part = value
            for key in source:
                part = part[key]
            holder[place[-1]] = copy.deepcopy(part)
        else:
            holder[place[-1]] = draw(new)
    return value


def setting_value(annotation: Any) -> st.SearchStrategy[Any]:
    """Values of the kind that a setting takes, within its bounds or not."""
    kinds: list[st.SearchStrategy[Any]] = []
    for member in member_types(annotation):
        if get_origin(member) is Literal:
            kinds.append(st.sampled_from(get_args(member)))
        elif get_origin(member) in (list, tuple):
            kinds.append(st.lists(st.one_of(setting_value(get_args(member)[0]), values), max_size=3))
        elif get_origin(member) is dict:
            names = st.one_of(st.sampled_from(["cola", "rte", "train", "dev", "dev_b", "test"]), keys)
            kinds.append(st.dictionaries(names, setting_value(get_args(member)[1]), max_size=3))
        elif member in (int, float):
            kinds += [numbers, st.floats(0, 1)] if member is float else [whole_numbers, st.integers(0, 100)]
        elif member is bool:
            kinds.append(st.booleans())
        elif member is str:
            kinds.append(texts)
    return st.integers(0, 7).flatmap(lambda number: st.one_of(*kinds) if number else scalars)


NAMES = [doc.name for doc in field_docs()]


@st.composite
def with_settings(
    draw: st.DrawFn, originals: Sequence[dict[str, Any]], names: Sequence[str] = NAMES, most: int = 3
) -> dict[str, Any]:
    """One of the recipes `originals` with one to `most` settings written into it."""
    recipe = copy.deepcopy(draw(st.sampled_from(originals)))
    for name in draw(st.lists(st.sampled_from(names), min_size=1, max_size=most)):
        *sections, key = name.split(".")
        value = draw(setting_value(annotation_at(name.split("."))))
        holder: Any = recipe
        if "stages" in recipe and draw(st.booleans()):
            holder = draw(st.sampled_from(recipe["stages"]))
        for section in sections:
            if section == "NAME":
                section = draw(st.sampled_from([*holder, "mine"])) if isinstance(holder, dict) else 0
            if isinstance(holder, list):  # tasks as a list of names
                break
            holder[section] = holder.get(section) or {}
            holder = holder[section]
        if isinstance(holder, dict):
            holder[key] = value
    return recipe


def text_of_yaml(value: Any) -> bytes:
    return yaml.safe_dump(value, sort_keys=False).encode()


def text_of_json(value: Any) -> bytes:
    return json.dumps(value).encode("utf-8", "surrogatepass")


@st.composite
def torn(draw: st.DrawFn, wholes: Sequence[bytes], inserted: Sequence[bytes] = ()) -> bytes:
    """One of `wholes` with a part removed, a part put in twice, or other bytes put in."""
    whole = draw(st.sampled_from(wholes))
    for _ in range(draw(st.integers(1, 2))):
        start = draw(st.integers(0, len(whole)))
        end = start + draw(st.sampled_from([0, 0, 1, 2, 8, 40, len(whole)]))
        piece = draw(
            st.one_of(
                st.binary(max_size=8),
                st.just(whole[start:end]),
                *([st.sampled_from(inserted)] if inserted else []),
            )
        )
        whole = whole[:start] + piece + whole[draw(st.sampled_from([start, end])) :]
    return whole


YAML_PIECES = [
    b"\t", b"&a ", b"*a", b"\n<<: *a\n", b"!!int ", b"!!float x", b"!!timestamp 2000-01-01",
    b"!!python/name:os.system ", b"!!set {a}",
    b"!!binary aa", b"? [a]\n: b\n", b"\n---\n", b"%YAML 9.9\n", b"\xef\xbb\xbf", b"\xff\xfe",
    b"\x00", b"\x85", b"\r", b"| ", b"'", b'"',
    b"- ", b": ", b"#", b"[[[[[[", b"{a: {a: {a: ", b"9" * 5000, b"1e999999", b'"\\ud800"', b'"\\0"',
]  # fmt: skip
JSON_PIECES = [
    b"[", b"{", b'"', b"\\", b"\\ud83d", b",", b":", b"NaN", b"-Infinity", b"1e999", b"9" * 5000,
    b"[" * 3000, b"null", b"\x00", b"\xff", b'{"a":' * 400,
]  # fmt: skip


def refused_or_done(function: Callable[[], Any]) -> Any:
    """What `function` gives, or None if it refuses with messages.

    Any other exception fails the test, with the input that hypothesis shows.
    """
    try:
        result = function()
    except UserError as error:
        assert error.problems and all(isinstance(problem, str) and problem for problem in error.problems)
        event(f"refused: {_kind_of(error.problems[0])}")
        return None
    event("accepted")
    return result


def _kind_of(problem: str) -> str:
    """The first words of a message after what it is about: enough to see in the statistics how far inputs
    get.
    """
    words = re.sub(r"^\S*:( row \d+:)?", "", problem.split("\n")[0])
    return " ".join(re.sub(r"[^A-Za-z ]", " ", words).split()[:4])


def bomb(width: int, levels: int) -> bytes:
    """A few hundred bytes of YAML that mean width ** levels values."""
    lines = ["a0: &a0 1"] + [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * width)}]" for n in range(1, levels)]
    return "\n".join(lines).encode()
