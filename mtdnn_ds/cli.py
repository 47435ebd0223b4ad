"""The command line: verbs, flags, exit codes. fire parses; nothing runs before every flag is known to be right.

fire calls a function first and complains about unknown flags after, reads `a,b` as a tuple and `--nope` as pe=False. So it
only ever calls a recorder that takes everything as raw text, from arguments written out in one unambiguous form.
"""

from __future__ import annotations

import difflib
import importlib
import logging
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mtdnn_ds.commands.verbs import LAUNCHER_FLAGS, LOG_LEVELS, VERBS, Flag, Verb
from mtdnn_ds.config.errors import ConfigError, Stopped, TrainingError, UserError, did_you_mean
from mtdnn_ds.config.launch import rank_of, take_place
from mtdnn_ds.config.paths import path_problem
from mtdnn_ds.faults.exit_codes import STOPPED

PROJECT_ROOT = Path(__file__).resolve().parent.parent

_FLAG = re.compile(r"--?[A-Za-z]")  # -3 and -1e-4 are values


@dataclass(frozen=True, slots=True)
class Call:
    """What the user wrote, as raw text."""

    verb: str
    flags: dict[str, str]
    positional: tuple[str, ...]


def main(arguments: Sequence[str] | None = None) -> int:
    """`python -m mtdnn_ds VERB ...`; returns the exit code: 0 done, 2 refused, 1 failed after work was begun, 85 stopped on request, 130 interrupted."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    return guarded(lambda: _main(arguments))


def train_main(arguments: Sequence[str] | None = None) -> int:
    """`launchers/train.py ...`: the verb train without its name."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    return guarded(lambda: _run_verb(VERBS["train"], arguments, program="deepspeed launchers/train.py"))


def _main(arguments: list[str]) -> int:
    program = "python -m mtdnn_ds"
    verb = arguments[0] if arguments else "--help"
    if verb in ("-h", "--help", "help"):
        from mtdnn_ds.commands.help import overview

        print(overview(program), end="")
        return 0
    verb = verb.replace("_", "-") if verb.replace("_", "-") in VERBS else verb
    if verb not in VERBS:
        what = (
            f"'{verb}' is a flag; the verb comes first" if verb.startswith("-") else f"unknown verb '{verb}'"
        )
        raise ConfigError(f"{what}{did_you_mean(verb, VERBS)}")
    return _run_verb(VERBS[verb], arguments[1:], program=f"{program} {verb}")


def _run_verb(verb: Verb, arguments: list[str], *, program: str) -> int:
    if "-h" in arguments or "--help" in arguments:
        from mtdnn_ds.commands.help import verb_help

        print(verb_help(verb, program), end="")
        return 0
    values = read_arguments(verb, arguments)
    _configure_logging(values.get("log_level") or "warning")
    run: Callable[..., int] = importlib.import_module(f"mtdnn_ds.commands.{verb.module}").run
    if not verb.from_launcher:
        return run(**values)
    from mtdnn_ds.faults.stop_requests import listening

    with listening(to_the_end=True):
        return run(**values)


def read_arguments(verb: Verb, arguments: Sequence[str]) -> dict[str, Any]:
    """The keyword arguments of the verb's `run`. Raises ConfigError with everything wrong with the flags, and with the recipe if they are."""
    problems: list[str] = []
    call = _parse(
        verb.module,
        _explicit(arguments, problems, switches=[flag.name for flag in verb.flags if flag.is_switch]),
    )
    flags = dict(call.flags)
    values = _flag_values(verb, flags, call.positional, problems)
    overrides = {
        name: text
        for name, text in flags.items()
        if name not in values and not (verb.from_launcher and name in LAUNCHER_FLAGS)
    }
    problems += _unknown_flags(verb, overrides)
    if problems:
        raise ConfigError([*problems, *_recipe_problems(verb, values, overrides)])
    return {**values, "overrides": overrides} if verb.takes_settings else values


def _explicit(arguments: Sequence[str], problems: list[str], *, switches: Sequence[str]) -> list[str]:
    """Every flag as one --name=value, so that neither fire nor a reader has to guess what belongs together."""
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


def _parse(verb: str, arguments: list[str]) -> Call:
    import fire

    @fire.decorators.SetParseFn(str)
    def record(*positional: str, **flags: str) -> Call:
        return Call(verb, flags, positional)

    call = fire.Fire({verb: record}, command=[verb, *arguments], name="mtdnn_ds", serialize=lambda call: None)
    assert isinstance(call, Call)
    return call


def _flag_values(
    verb: Verb, flags: dict[str, str], positional: Sequence[str], problems: list[str]
) -> dict[str, Any]:
    """The verb's own flags, typed, with their defaults."""
    unnamed = list(positional)
    if verb.positional and unnamed:
        if verb.positional in flags:
            problems.append(f"'{unnamed[0]}': --{verb.positional} is given too; keep one")
        flags.setdefault(verb.positional, unnamed.pop(0))
    more, unnamed = (unnamed, []) if verb.takes_several else ([], unnamed)
    problems += [
        f"'{word}': unexpected; flags are written --name value{_recipe_hint(verb, word)}" for word in unnamed
    ]
    values: dict[str, Any] = {}
    for flag in verb.flags:
        if flag.required and flag.name not in flags:
            problems.append(f"--{flag.name}: is missing: {flag.help}")
        values[flag.name] = flags.get(flag.name, _default(flag))
        if (
            flag.name in flags and (problem := path_problem(flags[flag.name])) is not None
        ):  # most are paths, and the others are short
            problems.append(f"--{flag.name} {flags[flag.name][:60]}: {problem}")
        if flag.is_switch:
            if values[flag.name] not in (None, "true", "false"):
                problems.append(
                    f"--{flag.name}={values[flag.name]}: takes no value; write --{flag.name} or leave it out"
                )
            values[flag.name] = values[flag.name] == "true"
    if verb.positional in flags and verb.takes_several:
        values[str(verb.positional)] = (flags[str(verb.positional)], *more)
        problems += [
            f"'{word[:60]}': {problem}" for word in more if (problem := path_problem(word)) is not None
        ]
    if "log_level" in values and values["log_level"] not in LOG_LEVELS:
        problems.append(f"--log_level {values['log_level']}: must be one of {', '.join(LOG_LEVELS)}")
    if "world_size" in values:
        text = values["world_size"]
        if not re.fullmatch(r"[1-9][0-9]*", text):
            problems.append(f"--world_size {text}: must be a whole number, at least 1")
        else:
            values["world_size"] = int(text)
    return values


def _default(flag: Flag) -> str | None:
    return flag.default if not flag.shipped or flag.default is None else shipped_file(flag.default)


def shipped_file(name: str) -> str:
    """A file of this project: in the current directory, else beside the package."""
    return name if Path(name).exists() else str(PROJECT_ROOT / name)


def _recipe_hint(verb: Verb, word: str) -> str:
    takes_recipe = any(flag.name == "recipe" for flag in verb.flags)
    return f"; did you mean --recipe {word}?" if takes_recipe and word.endswith((".yaml", ".yml")) else ""


def _unknown_flags(verb: Verb, overrides: dict[str, str]) -> list[str]:
    """Problems with flags that are neither the verb's own nor, by their form, settings. Those are taken out of `overrides`."""
    own = [flag.name for flag in verb.flags]
    problems = []
    for name in list(overrides):
        is_setting = "." in name or name in ("tasks", "plugins")
        if verb.takes_settings and is_setting:
            continue
        del overrides[name]
        if not verb.takes_settings and is_setting:
            problems.append(
                f"--{name}: {verb.name} takes no settings; they come from the run's recipe.yaml; remove it"
            )
        else:
            problems.append(_unknown_flag(name, own, verb.takes_settings))
    return problems


def _unknown_flag(name: str, own: Sequence[str], takes_settings: bool) -> str:
    from mtdnn_ds.config.schema import unknown_setting

    close = difflib.get_close_matches(name, own, n=1)
    setting = (
        re.search(r"did you mean '(.+?)'", unknown_setting((name,))) if takes_settings and not close else None
    )
    if close or setting:
        return f"unknown flag '--{name}'; did you mean '--{close[0] if close else setting[1] if setting else ''}'?"
    return f"unknown flag '--{name}'{did_you_mean(name, own)}"


def _recipe_problems(verb: Verb, values: dict[str, Any], overrides: dict[str, str]) -> list[str]:
    """What is wrong with the recipe too, so that one message holds everything."""
    if not verb.takes_settings or not values.get("recipe"):
        return []
    from mtdnn_ds.config.stages import load_runs

    try:
        load_runs(values["recipe"], overrides)
    except ConfigError as error:
        return list(error.problems)
    return []


def _configure_logging(level: str) -> None:
    """Our own notes go to stderr as plain lines, from rank 0 only."""
    logger = logging.getLogger("mtdnn_ds")
    if not logger.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(message)s"))
        logger.addHandler(handler)
        logger.propagate = False
    logger.setLevel(level.upper() if _speaks() else "ERROR")


def guarded(run: Callable[[], int]) -> int:
    """`run()`'s exit code, or that of the error it raised, after saying what the matter is on rank 0. Our own mistakes keep their traceback."""
    try:
        take_place()  # before anybody asks for the rank
        return run()
    except UserError as error:
        if _speaks():
            print("\n".join(f"error: {problem}" for problem in error.problems), file=sys.stderr)
        return 1 if isinstance(error, TrainingError) else 2
    except Stopped as stopped:
        if _speaks():
            print(stopped, file=sys.stderr)
        return STOPPED
    except KeyboardInterrupt:
        if _speaks():
            print("interrupted", file=sys.stderr)
        return 130


def _speaks() -> bool:
    """Rank 0 or no launcher at all. Read from the environment: importing torch to ask would take seconds."""
    return rank_of() == 0
