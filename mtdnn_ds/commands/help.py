"""The text behind --help: verbs, flags and every recipe setting, from the tables that check them.

Prints nothing.
"""

from __future__ import annotations

import textwrap

from mtdnn_ds.commands.flags import LAUNCHER_FLAGS, Flag, Verb
from mtdnn_ds.commands.verbs import VERBS

_WIDTH = 118
_VERB_COLUMN, _FLAG_COLUMN, _LAUNCHER_COLUMN, _SETTING_COLUMN = 19, 22, 29, 40  # where the texts begin


def overview(program: str) -> str:
    """What `mtdnn_ds --help` shows. `program` is how it was called."""
    verbs = "\n".join(_entry(verb.name, verb.summary, _VERB_COLUMN) for verb in VERBS.values())
    return (
        f"usage: {program} VERB [--flag value ...] [--section.setting value ...]\n\n"
        "One encoder, many tasks, trained exactly under DeepSpeed.\n\n"
        f"verbs:\n{verbs}\n\n"
        f"{program} VERB --help shows a verb's flags and every setting of a recipe.\n"
        "On several ranks: deepspeed launchers/train.py [the flags of train]\n"
    )


def verb_help(verb: Verb, program: str) -> str:
    """What `VERB --help` and `launchers/train.py --help` show. `program` is how the verb was called."""
    lines = [f"{_usage(verb, program)}\n\n{verb.summary}\n", "flags:"]
    lines += [_entry(f"--{flag.name}", _flag_text(flag), _FLAG_COLUMN) for flag in verb.flags]
    if verb.from_launcher:
        names = " ".join(f"--{name}" for name in LAUNCHER_FLAGS)
        lines.append(_entry(names, "as launchers pass them; without effect", _LAUNCHER_COLUMN))

    if verb.takes_settings:
        lines += ["", "settings, over those of the recipe (paths are relative to the current directory):"]
        lines += [_entry(name, text, _SETTING_COLUMN) for name, text in _settings()]
    return "\n".join(lines) + "\n"


def _usage(verb: Verb, program: str) -> str:
    words = ["usage:", program]
    if verb.positional:
        words.append(verb.positional.upper())
    if verb.takes_several:
        words.append(f"[{words[-1]} ...]")
    words.append("[--flag value ...]")
    if verb.takes_settings:
        words.append("[--section.setting value ...]")
    return " ".join(words)


def _flag_text(flag: Flag) -> str:
    if flag.required:
        return f"{flag.help}  (required)"
    if flag.default is not None:
        return f"{flag.help}  [{flag.default}]"
    return flag.help


def _settings() -> list[tuple[str, str]]:
    """(flag, text) of everything that a recipe can say."""
    from mtdnn_ds.config.schema import field_docs

    settings = [
        ("--tasks", "a,b,c: train these of the recipe's and the built-in tasks  [the recipe's]"),
        ("--stages.NAME.SETTING", "any setting of one stage of a recipe with stages: docs/stages.md"),
    ]
    for doc in field_docs():
        text = f"{doc.type}; {doc.description}" if doc.description else doc.type
        if doc.default != "-":
            text += f"  [{doc.default}]"
        settings.append((f"--{doc.name}", text))
    return settings


def _entry(name: str, text: str, column: int) -> str:
    return textwrap.fill(
        text,
        width=_WIDTH,
        initial_indent=f"  {name}".ljust(column - 1) + " ",
        subsequent_indent=" " * column,
        break_on_hyphens=False,
        break_long_words=False,
    )
