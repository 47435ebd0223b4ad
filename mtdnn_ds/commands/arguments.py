"""What the words of a command line mean to one verb: its flags typed, settings left as text, every problem
found.

fire calls a function first and complains about unknown flags after, reads `a,b` as a tuple and `--nope` as
pe=False. So cli.py gives it a recorder that takes everything as raw text, and arguments in one unambiguous
form, `explicit`.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mtdnn_ds.commands.flags import LAUNCHER_FLAGS, LOG_LEVELS, Flag, Verb
from mtdnn_ds.config.errors import ConfigError, did_you_mean
from mtdnn_ds.config.paths import path_problem
from mtdnn_ds.config.shipped import QUICKSTART, quickstart_recipe, shipped_file

_FLAG = re.compile(r"--?[A-Za-z]")  # -3 and -1e-4 are values
_SHOWN = 60  # characters of a word that messages repeat


@dataclass(frozen=True, slots=True)
class Call:
    """What the user wrote, as raw text."""

    flags: dict[str, str]
    positional: tuple[str, ...]


def explicit(arguments: Sequence[str], problems: list[str], *, switches: Sequence[str]) -> list[str]:
    """Every flag as one --name=value: neither fire nor a reader has to guess what belongs together."""
    written: list[str] = []
    names: set[str] = set()
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        if argument in ("-", "--"):
            problems.append(f"'{argument}': means nothing here; remove it")
            continue
        if argument.startswith("--") and not _FLAG.match(argument):
            problems.append(f"'{argument}': the name of a flag begins with a letter; write --name value")
            continue
        if not _FLAG.match(argument):
            written.append(argument)
            continue

        name, equals, value = argument.lstrip("-").partition("=")
        if not equals and name in ("deepspeed", *switches):
            value = "true"
        elif not equals:
            if not rest or _FLAG.match(rest[0]):
                problems.append(f"--{name}: needs a value; write --{name} VALUE")
                continue
            value = rest.pop(0)

        if name.replace("-", "_") in names:
            problems.append(f"--{name}: is given twice; keep one")
        names.add(name.replace("-", "_"))
        written.append(f"--{name}={value}")
    return written


def keyword_arguments(verb: Verb, call: Call, problems: list[str]) -> dict[str, Any]:
    """The keyword arguments of the verb's `run`. `problems`: those found before.

    Raises ConfigError with everything wrong with the flags, and with the recipe if they are.
    """
    flags = dict(call.flags)
    positional = _take_positional(verb, flags, call.positional, problems)
    values = _flag_values(verb, flags, problems)
    if positional:
        values[str(verb.positional)] = positional

    ignored = LAUNCHER_FLAGS if verb.from_launcher else ()
    overrides = {name: text for name, text in flags.items() if name not in values and name not in ignored}
    problems += _take_unknown(verb, overrides)
    if problems:
        raise ConfigError([*problems, *_recipe_problems(verb, values, overrides)])

    if verb.takes_settings:
        values["overrides"] = overrides
    return values


def _take_positional(
    verb: Verb, flags: dict[str, str], words: Sequence[str], problems: list[str]
) -> tuple[str, ...]:
    """Words without a flag's name: the first is put into `flags`; of a verb that takes several, all are
    returned.
    """
    rest = list(words)
    if verb.positional and rest:
        if verb.positional in flags:
            problems.append(f"'{rest[0]}': --{verb.positional} is given too; keep one")
        flags.setdefault(verb.positional, rest.pop(0))

    if verb.takes_several:
        if verb.positional not in flags:
            return ()
        for word in rest:
            problem = path_problem(word)
            if problem is not None:
                problems.append(f"'{word[:_SHOWN]}': {problem}")
        return (flags[str(verb.positional)], *rest)

    for word in rest:
        problems.append(f"'{word}': unexpected; flags are written --name value{_recipe_hint(verb, word)}")
    return ()


def _recipe_hint(verb: Verb, word: str) -> str:
    takes_recipe = any(flag.name == "recipe" for flag in verb.flags)
    if takes_recipe and word.endswith((".yaml", ".yml")):
        return f"; did you mean --recipe {word}?"
    return ""


def _flag_values(verb: Verb, flags: Mapping[str, str], problems: list[str]) -> dict[str, Any]:
    """The verb's own flags, typed, with their defaults."""
    values: dict[str, Any] = {}
    for flag in verb.flags:
        if flag.name in flags:
            values[flag.name] = _given(flag, flags[flag.name], problems)
        else:
            if flag.required:
                problems.append(f"--{flag.name}: is missing: {flag.help}")
            values[flag.name] = _default(flag, flags)
    return values


def _given(flag: Flag, text: str, problems: list[str]) -> str | int | bool:
    problem = path_problem(text)  # most are paths, and the others are short
    if problem is not None:
        problems.append(f"--{flag.name} {text[:_SHOWN]}: {problem}")

    if flag.is_switch:
        if text not in ("true", "false"):
            problems.append(f"--{flag.name}={text}: takes no value; write --{flag.name} or leave it out")
        return text == "true"
    if flag.name == "world_size":
        if re.fullmatch(r"[1-9][0-9]*", text):
            return int(text)
        problems.append(f"--world_size {text}: must be a whole number, at least 1")
    if flag.name == "log_level" and text not in LOG_LEVELS:
        problems.append(f"--log_level {text}: must be one of {', '.join(LOG_LEVELS)}")
    if flag.is_shipped and problem is None:
        return shipped_file(text)
    return text


def _default(flag: Flag, flags: Mapping[str, str]) -> str | int | bool | None:
    if flag.is_switch:
        return False
    if flag.default is None:
        return None
    if flag.name == "world_size":
        return int(flag.default)
    if not flag.is_shipped:
        return flag.default

    # Who names an encoder of their own wants its weights, which the tiny one's recipe does not read.
    own_encoder = any(name.startswith("encoder.") for name in flags)
    if flag.default == QUICKSTART and not own_encoder:
        return shipped_file(quickstart_recipe())
    return shipped_file(flag.default)


def _take_unknown(verb: Verb, overrides: dict[str, str]) -> list[str]:
    """Problems with flags that are neither the verb's own nor, by their form, settings.

    Those are taken out of `overrides`.
    """
    own = [flag.name for flag in verb.flags]
    problems = []
    for name in list(overrides):
        is_setting = "." in name or name in ("tasks", "plugins")
        if verb.takes_settings and is_setting:
            continue

        del overrides[name]
        if is_setting:
            what = f"{verb.name} takes no settings; they come from the run's recipe.yaml; remove it"
            problems.append(f"--{name}: {what}")
        else:
            problems.append(_unknown_flag(name, own, verb.takes_settings))
    return problems


def _unknown_flag(name: str, own: Sequence[str], takes_settings: bool) -> str:
    from mtdnn_ds.config.schema import unknown_setting

    meant = difflib.get_close_matches(name, own, n=1)
    if not meant and takes_settings:
        meant = re.findall(r"did you mean '(.+?)'", unknown_setting((name,)))
    if meant:
        return f"unknown flag '--{name}'; did you mean '--{meant[0]}'?"
    return f"unknown flag '--{name}'{did_you_mean(name, own)}"


def _recipe_problems(verb: Verb, values: Mapping[str, Any], overrides: Mapping[str, str]) -> list[str]:
    """What is wrong with the recipe too, so that one message holds everything."""
    if not verb.takes_settings or not values.get("recipe"):
        return []

    from mtdnn_ds.train.preflight.checks import checked_tasks

    try:
        checked_tasks(values["recipe"], overrides)
    except ConfigError as error:
        return list(error.problems)
    return []
