"""The records of the verbs' table, and the flags that several verbs have.

Not the table (commands/verbs.py).
"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass

from mtdnn_ds.config.precision import DTYPES
from mtdnn_ds.config.shipped import QUICKSTART

LOG_LEVELS = ("debug", "info", "warning", "error")

# What launchers append to every script's arguments: understood, and without effect, because ranks come from
# the environment.
LAUNCHER_FLAGS = ("local_rank", "deepspeed")


@dataclass(frozen=True, slots=True)
class Flag:
    """One flag of a verb. `default` None: not given."""

    name: str
    help: str
    _: KW_ONLY
    default: str | None = None
    is_shipped: bool = False  # names a file of the user's, or one of this project's
    required: bool = False
    is_switch: bool = False  # given or not, without a value


@dataclass(frozen=True, slots=True)
class Verb:
    """One verb: `run` of the module of its name beside this one.

    It is called with the verb's flags and, if it takes settings, `overrides`.
    """

    name: str
    summary: str
    flags: tuple[Flag, ...]
    _: KW_ONLY
    takes_settings: bool = False
    positional: str | None = None  # flag that may be given without its name
    takes_several: bool = False  # and more than once: its value is a tuple
    from_launcher: bool = False
    goes_on: bool = False  # stopped and called again, it does not begin anew

    @property
    def module(self) -> str:
        """Name of its module in mtdnn_ds/commands."""
        return self.name.replace("-", "_")


RECIPE = Flag("recipe", "recipe to run", default=QUICKSTART, is_shipped=True)
DEEPSPEED = Flag(
    "deepspeed_config",
    "DeepSpeed JSON: ZeRO stage, precision, offload",
    default="ds_configs/zero2.json",
    is_shipped=True,
)
LOG_LEVEL = Flag("log_level", f"{' | '.join(LOG_LEVELS)}: how much the libraries say", default="warning")
RUN_DIR = Flag("run_dir", "run folder, as train wrote it", required=True)

MODEL = Flag("model", "run folder, or a folder that export wrote of the whole model", required=True)
INPUT = Flag("input", "csv, tsv, jsonl or parquet with columns, or txt with a text a line", required=True)
TEXT_COLUMNS = Flag(
    "text_columns", "columns that hold the text, or both texts (a,b); default: by their names"
)
ID_COLUMN = Flag(
    "id_column", "column that names a row in the output; default: id, idx or index, else the row's line"
)
CHECKPOINT = Flag(
    "checkpoint",
    "of a run: best/average, best/TASK, step_N or latest; default: the best on average, else the latest",
)
MAX_TOKENS = Flag("max_tokens", "tokens of a micro-batch; default: the training run's")
DTYPE = Flag(
    "dtype",
    f"{' | '.join(DTYPES)}: number format that the model computes in; "
    "auto: bf16 on a GPU with bf16 arithmetic, else fp32",
    default="auto",
)
ON_BAD_ROW = Flag("on_bad_row", "refuse: write nothing; skip: leave bad rows out", default="refuse")
TRUST_PLUGINS = Flag(
    "trust_plugins",
    "run the Python files of an exported folder (kinds of the user's own)",
    is_switch=True,
)

# Of predict and embed, which answer files.
HOW_ROWS_ARE_READ = (TEXT_COLUMNS, ID_COLUMN, CHECKPOINT, DTYPE, MAX_TOKENS)
HOW_FILES_ARE_ANSWERED = (ON_BAD_ROW, TRUST_PLUGINS, LOG_LEVEL)

# What a node has, and what it gets; here because the table of verbs is long.
BUNDLE = (
    Flag(
        "installed",
        "what the node has: a file that `python3 -m pip list --format=freeze` wrote there",
        required=True,
    ),
    Flag("output", "folder to make", default="build/bundle"),
    Flag("python", "the node's Python, e.g. 3.12; default: the version that runs this"),
    Flag(
        "platform",
        "newest tag of wheels that run on the node; default: manylinux_2_28 of this machine's processor",
    ),
    Flag("include", "files and folders to take along (a,b): weights, data; they go to project/"),
    Flag("max_size", "refuse to make more than this, e.g. 60MiB"),
    Flag("extras", "also what these need (a,b): serve, export, quickstart (MiniLM's weights)"),
)
