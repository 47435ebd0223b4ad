"""Which keys and kinds of values a DeepSpeed JSON holds, checked against the tables. Looks at no recipe and
no machine."""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mtdnn_ds.config.deepspeed_keys import DEEPSPEED_VERSION, REFUSED, SECTIONS, TOP_LEVEL
from mtdnn_ds.config.errors import ConfigError, did_you_mean
from mtdnn_ds.config.text_files import MAX_DEPTH, MAX_DIGITS, TOO_DEEP, read_text, unwritable_in
from mtdnn_ds.config.yaml_text import duplicate_keys

# Keys that the recipe or the machine fills in, as users of Hugging Face's Trainer write them.
FILLED_IN = {
    "train_batch_size",
    "train_micro_batch_size_per_gpu",
    "gradient_accumulation_steps",
    "gradient_clipping",
    "optimizer",
    "scheduler",
    "bf16.enabled",
    "fp16.enabled",
    "torch_autocast.enabled",
}

_TOO_LONG = f"a number of more than {MAX_DIGITS} digits; write a smaller one"
_KIND_WORDS = {
    "flag": "true or false",
    "whole": "a whole number",
    "number": "a number",
    "text": "text in quotes",
    "names": "a list of texts",
    "section": "a section in braces { }",
}


def load_deepspeed_json(path: str) -> dict[str, Any]:
    """The JSON object in `path`. Raises ConfigError with file and line for syntax errors and for keys given
    twice."""
    text = read_text(path, "DeepSpeed configuration")
    repeated: list[str] = []

    def keep_last(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names = [name for name, _ in pairs]
        repeated.extend(name for name in dict.fromkeys(names) if names.count(name) > 1)
        return dict(pairs)

    try:
        settings = json.loads(text, object_pairs_hook=keep_last)
        flaw = _flaw(settings)
    except json.JSONDecodeError as error:
        hint = ""
        if text.split("\n")[error.lineno - 1].lstrip().startswith(("//", "#", "/*")):
            hint = "; JSON has no comments"
        raise ConfigError(
            f"{path}:{error.lineno}: not valid JSON: {error.msg} (column {error.colno}){hint}"
        ) from None
    except RecursionError:
        flaw = TOO_DEEP
    except ValueError:  # what Python's reader makes of a number with thousands of digits
        flaw = _TOO_LONG

    if flaw is not None:
        raise ConfigError(f"{path}: {flaw}")
    if not isinstance(settings, dict):
        raise ConfigError(
            f"{path}: a DeepSpeed configuration is a JSON object {{...}}, not a {type(settings).__name__}"
        )
    if repeated:
        places = _places(text, repeated)
        raise ConfigError(
            [f"{path}{place}: key '{name[:60]}' is given twice; keep one" for name, place in places]
        )
    return settings


def _flaw(settings: Any) -> str | None:
    """What no setting can be: found before anything walks through the values. `settings` may be nested to any
    depth."""
    layer, depth = [settings], 0
    while layer:
        depth += 1
        if depth > MAX_DEPTH:
            return TOO_DEEP

        inner: list[Any] = []
        for value in layer:
            if isinstance(value, float) and not math.isfinite(value):
                return f"a number that is {value}; write one that JSON knows, below 1e308"
            if isinstance(value, int) and abs(value) >= 10**MAX_DIGITS:
                return _TOO_LONG
            if isinstance(value, str) and unwritable_in(value) is not None:
                return unwritable_in(value)
            if isinstance(value, dict):
                inner += [*value.keys(), *value.values()]
            elif isinstance(value, list):
                inner += value
        layer = inner
    return None


def _places(text: str, names: Sequence[str]) -> list[tuple[str, str]]:
    """Each key with the line of its second occurrence as ":7".

    JSON is YAML but for tabs and a few rare forms, which have no lines; only YAML's parser keeps them.
    """
    found = duplicate_keys(text.replace("\t", " "))
    return [(name, f":{line}") for name, line in found] or [(name, "") for name in dict.fromkeys(names)]


def key_problems(settings: Mapping[str, Any], source: str) -> list[str]:
    """One line for every key that is unknown, refused, of the wrong kind, or "auto" where nothing fills it
    in."""
    return [f"{source}: {line}" for line in _section_problems(settings, "", TOP_LEVEL)]


def drop_automatic_sizes(config: dict[str, Any]) -> Iterator[str]:
    """Remove "auto" from ZeRO's bucket sizes and thresholds, so that DeepSpeed's own defaults hold; yields a
    note for each."""
    zero = config.get("zero_optimization", {})
    for key in [key for key, value in zero.items() if value == "auto"]:
        del zero[key]
        yield f"zero_optimization.{key} 'auto': DeepSpeed's default is used"


def _section_problems(section: Mapping[str, Any], prefix: str, known: Mapping[str, str]) -> Iterator[str]:
    for key, value in section.items():
        name = f"{prefix}{key}"
        if name in REFUSED:
            yield f"{name}: {REFUSED[name]}"
        elif key not in known:
            yield _unknown(name, key, known)
        elif value == "auto":
            if name not in FILLED_IN and not _is_automatic_size(name, known[key]):
                yield f"{name} 'auto': nothing fills this in; write a value or remove it"
        elif not _is_kind(value, known[key]):
            wanted = _KIND_WORDS.get(known[key]) or f"one of {known[key].replace('|', ', ')}"
            yield f"{name}={_shown(value)}: must be {wanted}"
        elif isinstance(value, dict) and name in SECTIONS:
            yield from _section_problems(value, f"{name}.", SECTIONS[name])


def _is_automatic_size(name: str, kind: str) -> bool:
    """Whether "auto" leaves the choice to DeepSpeed: bucket sizes and thresholds of ZeRO."""
    section, _, key = name.rpartition(".")
    return kind == "whole" and section == "zero_optimization" and key != "stage"


def _unknown(name: str, key: str, known: Mapping[str, str]) -> str:
    close = difflib.get_close_matches(key, known, n=1)
    close = close or [f"{section}.{key}" for section, keys in SECTIONS.items() if key in keys]
    close = close or [top for top in TOP_LEVEL if top == key]
    if close:
        return f"unknown key '{name}'; did you mean '{close[0]}'?"
    return f"unknown key '{name}' for deepspeed {DEEPSPEED_VERSION}{did_you_mean(key, known)}"


def _is_kind(value: Any, kind: str) -> bool:
    if "|" in kind:
        return isinstance(value, str) and value.lower() in kind.lower().split("|")
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return {
        "flag": isinstance(value, bool),
        "whole": is_number and value >= 0 and value == value // 1,  # 5e8 is a float to JSON only
        "number": is_number,
        "text": isinstance(value, str),
        "names": isinstance(value, list) and all(isinstance(item, str) for item in value),
        "section": isinstance(value, dict),
        "any": True,
    }[kind]


def _shown(value: Any) -> str:
    return json.dumps(value)[:80]
