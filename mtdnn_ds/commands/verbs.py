"""The verbs of `python -m mtdnn_ds` and their flags, as one table. Texts and defaults only; nothing is run or parsed here."""

from __future__ import annotations

from dataclasses import dataclass

LOG_LEVELS = ("debug", "info", "warning", "error")

# What launchers append to every script's arguments: understood, and without effect, because ranks come from the environment.
LAUNCHER_FLAGS = ("local_rank", "deepspeed")


@dataclass(frozen=True, kw_only=True, slots=True)
class Flag:
    """One flag of a verb. `default` None: not given."""

    name: str
    help: str
    default: str | None = None
    shipped: bool = False  # the default is a file of this project, looked for in the current directory, then beside the package
    required: bool = False
    is_switch: bool = False  # given or not, without a value


@dataclass(frozen=True, kw_only=True, slots=True)
class Verb:
    """One verb: `run` of mtdnn_ds/commands/NAME.py, called with its flags and, if it takes settings, `overrides`."""

    name: str
    summary: str
    flags: tuple[Flag, ...]
    takes_settings: bool = True
    positional: str | None = None  # flag that may be given without its name
    takes_several: bool = False  # and more than once: its value is a tuple
    from_launcher: bool = False

    @property
    def module(self) -> str:
        """Name of its module in mtdnn_ds/commands."""
        return self.name.replace("-", "_")


_RECIPE = Flag(name="recipe", help="recipe to run", default="recipes/quickstart.yaml", shipped=True)
_DEEPSPEED = Flag(
    name="deepspeed_config",
    help="DeepSpeed JSON: ZeRO stage, precision, offload",
    default="ds_configs/zero2.json",
    shipped=True,
)
_LOG_LEVEL = Flag(
    name="log_level", help=f"{' | '.join(LOG_LEVELS)}: how much the libraries say", default="warning"
)

_MODEL = Flag(
    name="model", help="run folder, or a folder that export wrote of the whole model", required=True
)
_INPUT = Flag(
    name="input", help="csv, tsv, jsonl or parquet with columns, or txt with a text a line", required=True
)
_COLUMNS = (
    Flag(
        name="text_columns", help="columns that hold the text, or both texts (a,b); default: by their names"
    ),
    Flag(
        name="id_column",
        help="column that names a row in the output; default: id, idx or index, else the row's line",
    ),
)
_CHECKPOINT = Flag(
    name="checkpoint",
    help="of a run: best/average, best/TASK, step_N or latest; default: the best on average, else the latest",
)
_MAX_TOKENS = Flag(name="max_tokens", help="tokens of a micro-batch; default: the training run's")
_TRUST_PLUGINS = Flag(
    name="trust_plugins",
    help="run the Python files of an exported folder (kinds of the user's own)",
    is_switch=True,
)

VERBS: dict[str, Verb] = {
    verb.name: verb
    for verb in (
        Verb(
            name="tasks",
            summary="list the built-in tasks, or a recipe's tasks, with labels, metrics and the rows found for each split",
            flags=(Flag(name="recipe", help="list this recipe's tasks instead of the built-in ones"),),
            positional="recipe",
        ),
        Verb(
            name="prepare",
            summary="tokenize a recipe's data into the cache, so that training starts at once",
            flags=(_RECIPE,),
            positional="recipe",
        ),
        Verb(
            name="plan",
            summary="show what a run would do (steps, task shares, micro-batches, memory) without training",
            flags=(
                _RECIPE,
                _DEEPSPEED,
                Flag(name="world_size", help="number of ranks to plan for", default="1"),
                Flag(
                    name="skip_findings",
                    help="do not look for repeated rows, odd labels and tasks hardly seen",
                    is_switch=True,
                ),
            ),
            positional="recipe",
        ),
        Verb(
            name="train",
            summary="train a recipe; under deepspeed or torchrun on many ranks",
            flags=(
                _RECIPE,
                _DEEPSPEED,
                Flag(name="output_dir", help="run folder; default: runs/NAME of the recipe's file"),
                Flag(
                    name="resume",
                    help="none: start anew in an empty folder; auto: go on from the newest checkpoint if there is one; or a checkpoint's folder",
                    default="none",
                ),
                _LOG_LEVEL,
            ),
            from_launcher=True,
        ),
        Verb(
            name="adapt",
            summary="fine-tune a run's encoder and the plain one on samples of a task, and compare them",
            flags=(
                Flag(name="run_dir", help="run folder of a multi-task run", required=True),
                Flag(
                    name="task",
                    help="the task to adapt to: a built-in one, or one of the recipe's",
                    required=True,
                ),
                Flag(name="fractions", help="shares of the training examples", default="0.001,0.01,0.1,1"),
                Flag(name="samplings", help="samples drawn for each share", default="5"),
                Flag(
                    name="checkpoint",
                    help="of the run: best/average, best/TASK, step_N or latest",
                    default="best/average",
                ),
                Flag(
                    name="epochs",
                    help="passes over each sample, unless --train.steps or --train.epochs is given",
                    default="5",
                ),
                Flag(
                    name="min_steps",
                    help="fewest steps of a run, for samples smaller than a step",
                    default="50",
                ),
                Flag(
                    name="head_of",
                    help="task of the run whose head the new task begins with (equal labels); default: a new head",
                ),
                Flag(
                    name="recipe",
                    help="where settings and own tasks come from; default: the run's recipe.yaml",
                ),
                _DEEPSPEED,
                Flag(name="output_dir", help="folder of the experiment; default: runs/adapt_TASK"),
                _LOG_LEVEL,
            ),
            positional="run_dir",
            from_launcher=True,
        ),
        Verb(
            name="compare",
            summary="train a recipe's tasks alone, in sequence and together on one budget, and compare them",
            flags=(
                _RECIPE,
                Flag(name="seeds", help="runs of each way, with seeds from train.seed on", default="3"),
                _DEEPSPEED,
                Flag(
                    name="output_dir",
                    help="folder of the experiment; default: runs/compare_NAME of the recipe's file",
                ),
                _LOG_LEVEL,
            ),
            positional="recipe",
            from_launcher=True,
        ),
        Verb(
            name="distill",
            summary="store what a recipe's teachers answer on its training examples, and score them, before any training",
            flags=(
                Flag(name="recipe", help="the student's recipe, with distillation.teachers", required=True),
                _LOG_LEVEL,
            ),
            positional="recipe",
            from_launcher=True,
        ),
        Verb(
            name="evaluate",
            summary="score a run's checkpoint on every development split",
            flags=(
                Flag(name="run_dir", help="run folder, as train wrote it", required=True),
                Flag(name="checkpoint", help="step_N, best/TASK, best/average, or latest", default="latest"),
                _LOG_LEVEL,
            ),
            takes_settings=False,
            positional="run_dir",
            from_launcher=True,
        ),
        Verb(
            name="submit",
            summary="write GLUE's leaderboard zip from a run and the official test files, or check one",
            flags=(
                Flag(name="run_dir", help="run folder, as train wrote it"),
                Flag(
                    name="checkpoint",
                    help="best: each task from its own best/TASK; or best/average, step_N, latest for all",
                    default="best",
                ),
                Flag(
                    name="glue_dir",
                    help="folder with the official test files; default: the run's data.glue_dir",
                ),
                Flag(name="output", help="zip to write; default: glue_submission.zip in the run folder"),
                Flag(
                    name="fill_missing",
                    help="fill files that the run cannot predict with the most frequent label",
                    is_switch=True,
                ),
                Flag(name="check", help="only check this zip, and say everything that is wrong with it"),
                _LOG_LEVEL,
            ),
            takes_settings=False,
            positional="run_dir",
            from_launcher=True,
        ),
        Verb(
            name="report",
            summary="write one HTML page on one or several runs: curves, mixture, speed, results, confusions, worst errors",
            flags=(
                Flag(name="run_dir", help="run folders, one or several", required=True),
                Flag(name="output", help="page to write", default="report.html"),
                Flag(
                    name="max_rows",
                    help="most dev rows of a classification or regression that are predicted",
                    default="2000",
                ),
                Flag(
                    name="no_predictions",
                    help="leave out confusions and worst errors, which need data and weights",
                    is_switch=True,
                ),
                _LOG_LEVEL,
            ),
            takes_settings=False,
            positional="run_dir",
            takes_several=True,
        ),
        Verb(
            name="import-task-def",
            summary="write a recipe from a task definition of mt-dnn and its data files, and say what is not carried over",
            flags=(
                Flag(name="task_def", help="mt-dnn's task definition, a YAML file", required=True),
                Flag(name="data", help="folder with its TASK_SPLIT.tsv (or .json) files", required=True),
                Flag(
                    name="output",
                    help="recipe to write; rows that must be converted go to a folder beside it",
                    required=True,
                ),
                Flag(
                    name="encoder",
                    help="encoder of the recipe; default: BERT-base, or what encoder_type names",
                ),
                Flag(
                    name="decode_with",
                    help="tokenizer (hub name or folder) to make texts of token ids with, where there is no .tsv",
                ),
            ),
            takes_settings=False,
            positional="task_def",
        ),
        Verb(
            name="predict",
            summary="answer every row of a file with all asked tasks in one pass of the encoder",
            flags=(
                _MODEL,
                Flag(
                    name="task",
                    help="a task, several (a,b), or all that can read the file's columns",
                    default="all",
                ),
                _INPUT,
                Flag(name="output", help="file to write: .jsonl or .csv", required=True),
                *_COLUMNS,
                _CHECKPOINT,
                _MAX_TOKENS,
                Flag(
                    name="window_rows",
                    help="rows that are sorted by length together, and that a killed run loses at most",
                    default="2048",
                ),
                Flag(
                    name="on_bad_row",
                    help="refuse: write nothing; skip: leave bad rows out",
                    default="refuse",
                ),
                _TRUST_PLUGINS,
                _LOG_LEVEL,
            ),
            takes_settings=False,
            positional="model",
            from_launcher=True,
        ),
        Verb(
            name="embed",
            summary="write the encoder's embedding of every row of a file",
            flags=(
                _MODEL,
                _INPUT,
                Flag(name="output", help="file to write: .npy or .parquet", required=True),
                Flag(
                    name="pooling",
                    help="cls: the first token's hidden state; mean: the mean over all tokens",
                    default="cls",
                ),
                Flag(
                    name="layer",
                    help="whose hidden states: -1 the last layer's, 0 the embeddings'",
                    default="-1",
                ),
                Flag(name="task", help="soft and low-rank sharing: the task whose encoder it is"),
                *_COLUMNS,
                _CHECKPOINT,
                _MAX_TOKENS,
                Flag(name="window_rows", help="rows that are sorted by length together", default="2048"),
                Flag(
                    name="on_bad_row",
                    help="refuse: write nothing; skip: leave bad rows out",
                    default="refuse",
                ),
                _TRUST_PLUGINS,
                _LOG_LEVEL,
            ),
            takes_settings=False,
            positional="model",
            from_launcher=True,
        ),
        Verb(
            name="serve",
            summary="answer texts over HTTP, with a page that shows every task's answer",
            flags=(
                _MODEL,
                Flag(
                    name="host",
                    help="address to listen on; other machines reach 0.0.0.0",
                    default="127.0.0.1",
                ),
                Flag(name="port", help="port to listen on", default="8000"),
                _CHECKPOINT,
                Flag(name="max_batch_tokens", help="tokens of a micro-batch; default: the training run's"),
                Flag(
                    name="max_wait_ms",
                    help="how long a request waits for others to share a pass with",
                    default="5",
                ),
                Flag(name="max_texts", help="most texts of a request", default="256"),
                Flag(name="max_chars", help="most characters of a text with all its parts", default="20000"),
                Flag(
                    name="max_queue",
                    help="most texts that wait; further requests are told to come again",
                    default="4096",
                ),
                _TRUST_PLUGINS,
                _LOG_LEVEL,
            ),
            takes_settings=False,
            positional="model",
        ),
        Verb(
            name="export",
            summary="write a run as folders for transformers, ONNX or sentence-transformers, each compared with the run",
            flags=(
                Flag(name="run_dir", help="run folder, as train wrote it", required=True),
                Flag(
                    name="task", help="this task only; default: the encoder, the whole model and every task"
                ),
                Flag(
                    name="checkpoint",
                    help="best (best/TASK with --task, else best/average), best/NAME, step_N, N or latest",
                    default="best",
                ),
                Flag(
                    name="output_dir",
                    help="where the folders go; default: the folder export in the run folder",
                ),
                Flag(name="format", help="hf | onnx | sentence-transformers | all", default="hf"),
                _LOG_LEVEL,
            ),
            takes_settings=False,
            positional="run_dir",
        ),
        Verb(
            name="verify",
            summary="measure a recipe's promises (exactness, ZeRO, ranks, resuming) with small runs, and print a certificate",
            flags=(
                _RECIPE,
                _DEEPSPEED,
                Flag(name="max_ranks", help="ranks of the runs on several", default="2"),
                Flag(name="certificate", help="file to write the results to, as JSON"),
                _LOG_LEVEL,
            ),
            positional="recipe",
        ),
        Verb(
            name="doctor",
            summary="check this machine, or under a launcher a whole cluster, for what would hurt a long run",
            flags=(
                Flag(
                    name="output_dir",
                    help="folder that runs will be written to, on a disk that all nodes share",
                    default="runs",
                ),
                Flag(
                    name="gpu",
                    help="also try every CUDA path: kernels, optimizers, DeepSpeed configurations",
                    is_switch=True,
                ),
                _LOG_LEVEL,
            ),
            takes_settings=False,
            from_launcher=True,
        ),
    )
}
