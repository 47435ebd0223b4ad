"""The command line: verbs, exit codes, who speaks.

What the words mean to a verb is said in commands/arguments.py.

Nothing runs before every flag is known to be right. Imports nothing heavy: `--help` answers at once.
"""

from __future__ import annotations

import importlib
import logging
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from mtdnn_ds.commands.arguments import Call, explicit, keyword_arguments
from mtdnn_ds.commands.flags import Verb
from mtdnn_ds.commands.verbs import VERBS
from mtdnn_ds.config.errors import ConfigError, Stopped, TrainingError, UserError, did_you_mean
from mtdnn_ds.config.launch import rank_of, take_place
from mtdnn_ds.config.shipped import QUICKSTART_TINY, TINY_NOTE, shipped_file
from mtdnn_ds.faults.exit import STOPPED

INTERRUPTED = 130  # as shells say it of SIGINT


def main(arguments: Sequence[str] | None = None) -> int:
    """`mtdnn_ds VERB ...`; returns the exit code.

    0 done, 2 refused, 1 failed after work was begun, 85 stopped on request, 130 interrupted.
    """
    words = sys.argv[1:] if arguments is None else list(arguments)
    return guarded(lambda: _main(words))


def train_main(arguments: Sequence[str] | None = None) -> int:
    """`launchers/train.py ...`: the verb train without its name."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    return guarded(lambda: _run_verb(VERBS["train"], words, program="deepspeed launchers/train.py"))


def _main(words: list[str]) -> int:
    program = _program()
    if not words or words[0] in ("-h", "--help", "help"):
        from mtdnn_ds.commands.help import overview

        print(overview(program), end="")
        return 0

    verb = VERBS.get(words[0]) or VERBS.get(words[0].replace("_", "-"))
    if verb is None:
        what = f"unknown verb '{words[0]}'"
        if words[0].startswith("-"):
            what = f"'{words[0]}' is a flag; the verb comes first"
        raise ConfigError(f"{what}{did_you_mean(words[0], VERBS)}")
    return _run_verb(verb, words[1:], program=f"{program} {verb.name}")


def _program() -> str:
    """What the user called: the installed command, or the package."""
    return "mtdnn_ds" if Path(sys.argv[0]).stem == "mtdnn_ds" else "python -m mtdnn_ds"


def _run_verb(verb: Verb, words: list[str], *, program: str) -> int:
    if "-h" in words or "--help" in words:
        from mtdnn_ds.commands.help import verb_help

        print(verb_help(verb, program), end="")
        return 0

    values = read_arguments(verb, words)
    from mtdnn_ds.monitor.console import speaking

    with ExitStack() as stack:
        stack.enter_context(speaking(log_level=values.get("log_level", "warning")))
        if verb.from_launcher:
            from mtdnn_ds.faults.stop_requests import listening, work_of_verb

            work = work_of_verb(verb.name, goes_on=verb.goes_on)
            stack.enter_context(listening(to_the_end=True, work=work))

        if values.get("recipe") == shipped_file(QUICKSTART_TINY):
            logging.getLogger(__name__).warning(TINY_NOTE)
        run: Callable[..., int] = importlib.import_module(f"mtdnn_ds.commands.{verb.module}").run
        return run(**values)


def read_arguments(verb: Verb, words: Sequence[str]) -> dict[str, Any]:
    """The keyword arguments of the verb's `run`.

    Raises ConfigError with everything wrong with the flags, and with the recipe if they are.
    """
    problems: list[str] = []
    switches = [flag.name for flag in verb.flags if flag.is_switch]
    call = _parse(verb.module, explicit(words, problems, switches=switches))
    return keyword_arguments(verb, call, problems)


def _parse(verb: str, words: list[str]) -> Call:
    import fire

    @fire.decorators.SetParseFn(str)
    def record(*positional: str, **flags: str) -> Call:
        return Call(flags, positional)

    call = fire.Fire({verb: record}, command=[verb, *words], name="mtdnn_ds", serialize=lambda call: None)
    assert isinstance(call, Call)
    return call


def guarded(run: Callable[[], int]) -> int:
    """`run()`'s exit code, or that of the error it raised, after saying what the matter is on rank 0.

    Our own mistakes keep their traceback.
    """
    try:
        take_place()  # before anybody asks for the rank
        return run()
    except UserError as error:
        _complain("\n".join(f"error: {problem}" for problem in error.problems))
        return 1 if isinstance(error, TrainingError) else 2
    except Stopped as stopped:
        _complain(str(stopped))
        return STOPPED
    except KeyboardInterrupt:
        _complain("interrupted")
        return INTERRUPTED


def _complain(text: str) -> None:
    # Rank 0 or no launcher at all. Read from the environment: importing torch to ask would take seconds.
    if rank_of() == 0:
        print(text, file=sys.stderr)
