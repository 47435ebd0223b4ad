"""The text behind --help: verbs, flags and every recipe setting, from the same tables that check them. Prints nothing."""

from __future__ import annotations

import textwrap

from mtdnn_ds.commands.verbs import LAUNCHER_FLAGS, VERBS, Flag, Verb

_WIDTH = 118


def overview(program: str) -> str:
    """What `python -m mtdnn_ds --help` shows."""
    verbs = "\n".join(_entry(verb.name, verb.summary, indent=2, column=19) for verb in VERBS.values())
    return (
        f"usage: {program} VERB [--flag value ...] [--section.setting value ...]\n\n"
        "One encoder, many tasks, trained exactly under DeepSpeed.\n\n"
        f"verbs:\n{verbs}\n\n"
        f"{program} VERB --help shows a verb's flags and every setting of a recipe.\n"
        "On several ranks: deepspeed launchers/train.py [the flags of train]\n"
    )


def verb_help(verb: Verb, program: str) -> str:
    """What `VERB --help` and `launchers/train.py --help` show. `program` is how the verb was called."""
    from mtdnn_ds.config.schema import field_docs

    name = f" {verb.positional.upper()}" if verb.positional else ""
    name += f" [{name.strip()} ...]" if verb.takes_several else ""
    settings = " [--section.setting value ...]" if verb.takes_settings else ""
    parts = [f"usage: {program}{name} [--flag value ...]{settings}\n\n{verb.summary}\n", "flags:"]
    parts += [_entry(f"--{flag.name}", _flag_text(flag), indent=2, column=22) for flag in verb.flags]
    if verb.from_launcher:
        parts.append(
            _entry(
                " ".join(f"--{name}" for name in LAUNCHER_FLAGS),
                "as launchers pass them; without effect",
                indent=2,
                column=29,
            )
        )
    if verb.takes_settings:
        parts += ["", "settings, over those of the recipe (paths are relative to the current directory):"]
        parts.append(
            _entry(
                "--tasks",
                "a,b,c: train these of the recipe's and the built-in tasks  [the recipe's]",
                indent=2,
                column=40,
            )
        )
        parts.append(
            _entry(
                "--stages.NAME.SETTING",
                "any setting of one stage of a recipe with stages: docs/stages.md",
                indent=2,
                column=40,
            )
        )
        parts += [
            _entry(
                f"--{doc.name}", _setting_text(doc.type, doc.default, doc.description), indent=2, column=40
            )
            for doc in field_docs()
        ]
    return "\n".join(parts) + "\n"


def _flag_text(flag: Flag) -> str:
    default = f"  [{flag.default}]" if flag.default is not None else ""
    return f"{flag.help}{'  (required)' if flag.required else default}"


def _setting_text(kind: str, default: str, description: str) -> str:
    about = f"; {description}" if description else ""
    return f"{kind}{about}{'' if default == '-' else f'  [{default}]'}"


def _entry(name: str, text: str, *, indent: int, column: int) -> str:
    first = f"{' ' * indent}{name}".ljust(column - 1) + " "
    return textwrap.fill(
        text,
        width=_WIDTH,
        initial_indent=first,
        subsequent_indent=" " * column,
        break_on_hyphens=False,
        break_long_words=False,
    )
