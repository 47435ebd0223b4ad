"""The verbs of `mtdnn_ds` and their flags, as one table.

Texts and defaults only; nothing is run or parsed here.
"""

from __future__ import annotations

from mtdnn_ds.commands import flags
from mtdnn_ds.commands.flags import Flag, Verb

_TABLE = (
    Verb(
        "tasks",
        "list the built-in tasks, or a recipe's tasks, "
        "with labels, metrics and the rows found for each split",
        (Flag("recipe", "list this recipe's tasks instead of the built-in ones", is_shipped=True),),
        takes_settings=True,
        positional="recipe",
    ),
    Verb(
        "recipes",
        "list the recipes, DeepSpeed configurations and launchers that come with this program, or copy one",
        (
            Flag("copy", "copy this one, with the files that it names"),
            Flag("to", "folder to copy into; default: the current one"),
        ),
    ),
    Verb(
        "prepare",
        "tokenize a recipe's data into the cache, so that training starts at once",
        (flags.RECIPE,),
        takes_settings=True,
        positional="recipe",
    ),
    Verb(
        "plan",
        "show what a run would do (steps, task shares, micro-batches, memory) without training",
        (
            flags.RECIPE,
            flags.DEEPSPEED,
            Flag("world_size", "number of ranks to plan for", default="1"),
            Flag(
                "skip_findings",
                "do not look for repeated rows, odd labels and tasks hardly seen",
                is_switch=True,
            ),
        ),
        takes_settings=True,
        positional="recipe",
    ),
    Verb(
        "train",
        "train a recipe; under deepspeed or torchrun on many ranks",
        (
            flags.RECIPE,
            flags.DEEPSPEED,
            Flag("output_dir", "run folder; default: runs/NAME of the recipe's file"),
            Flag(
                "resume",
                "none: start anew in an empty folder; "
                "auto: go on from the newest checkpoint if there is one; "
                "or a checkpoint's folder",
                default="none",
            ),
            flags.LOG_LEVEL,
        ),
        takes_settings=True,
        from_launcher=True,
    ),
    Verb(
        "adapt",
        "fine-tune a run's encoder and the plain one on samples of a task, and compare them",
        (
            Flag("run_dir", "run folder of a multi-task run", required=True),
            Flag("task", "the task to adapt to: a built-in one, or one of the recipe's", required=True),
            Flag("fractions", "shares of the training examples", default="0.001,0.01,0.1,1"),
            Flag("samplings", "samples drawn for each share", default="5"),
            Flag(
                "checkpoint", "of the run: best/average, best/TASK, step_N or latest", default="best/average"
            ),
            Flag(
                "epochs",
                "passes over each sample, unless --train.steps or --train.epochs is given",
                default="5",
            ),
            Flag("min_steps", "fewest steps of a run, for samples smaller than a step", default="50"),
            Flag(
                "head_of",
                "task of the run whose head the new task begins with (equal labels); default: a new head",
            ),
            Flag("recipe", "where settings and own tasks come from; default: the run's recipe.yaml"),
            flags.DEEPSPEED,
            Flag("output_dir", "folder of the experiment; default: runs/adapt_TASK"),
            flags.LOG_LEVEL,
        ),
        takes_settings=True,
        positional="run_dir",
        from_launcher=True,
        goes_on=True,
    ),
    Verb(
        "compare",
        "train a recipe's tasks alone, in sequence and together on one budget, and compare them",
        (
            flags.RECIPE,
            Flag("seeds", "runs of each way, with seeds from train.seed on", default="3"),
            flags.DEEPSPEED,
            Flag("output_dir", "folder of the experiment; default: runs/compare_NAME of the recipe's file"),
            flags.LOG_LEVEL,
        ),
        takes_settings=True,
        positional="recipe",
        from_launcher=True,
        goes_on=True,
    ),
    Verb(
        "distill",
        "store what a recipe's teachers answer on its training examples, and score them, before any training",
        (
            Flag(
                "recipe",
                "the student's recipe, with distillation.teachers",
                required=True,
                is_shipped=True,
            ),
            flags.LOG_LEVEL,
        ),
        takes_settings=True,
        positional="recipe",
        from_launcher=True,
        goes_on=True,
    ),
    Verb(
        "evaluate",
        "score a run's checkpoint on every development split",
        (
            flags.RUN_DIR,
            Flag("checkpoint", "step_N, best/TASK, best/average, or latest", default="latest"),
            flags.DTYPE,
            flags.LOG_LEVEL,
        ),
        positional="run_dir",
        from_launcher=True,
    ),
    Verb(
        "submit",
        "write GLUE's leaderboard zip from a run and the official test files, or check one",
        (
            Flag("run_dir", "run folder, as train wrote it"),
            Flag(
                "checkpoint",
                "best: each task from its own best/TASK; or best/average, step_N, latest for all",
                default="best",
            ),
            Flag("glue_dir", "folder with the official test files; default: the run's data.glue_dir"),
            Flag("output", "zip to write; default: glue_submission.zip in the run folder"),
            Flag(
                "fill_missing",
                "fill files that the run cannot predict with the most frequent label",
                is_switch=True,
            ),
            Flag("check", "only check this zip, and say everything that is wrong with it"),
            flags.LOG_LEVEL,
        ),
        positional="run_dir",
        from_launcher=True,
    ),
    Verb(
        "report",
        "write one HTML page on one or several runs: "
        "curves, mixture, speed, results, confusions, worst errors",
        (
            Flag("run_dir", "run folders, one or several", required=True),
            Flag("output", "page to write", default="report.html"),
            Flag(
                "max_rows",
                "most dev rows of a classification or regression that are predicted",
                default="2000",
            ),
            Flag(
                "no_predictions",
                "leave out confusions and worst errors, which need data and weights",
                is_switch=True,
            ),
            flags.LOG_LEVEL,
        ),
        positional="run_dir",
        takes_several=True,
    ),
    Verb(
        "import-task-def",
        "write a recipe from a task definition of mt-dnn and its data files, "
        "and say what is not carried over",
        (
            Flag("task_def", "mt-dnn's task definition, a YAML file", required=True),
            Flag("data", "folder with its TASK_SPLIT.tsv (or .json) files", required=True),
            Flag(
                "output",
                "recipe to write; rows that must be converted go to a folder beside it",
                required=True,
            ),
            Flag("encoder", "encoder of the recipe; default: BERT-base, or what encoder_type names"),
            Flag(
                "decode_with",
                "tokenizer (hub name or folder) to make texts of token ids with, where there is no .tsv",
            ),
        ),
        positional="task_def",
    ),
    Verb(
        "predict",
        "answer every row of a file with all asked tasks in one pass of the encoder",
        (
            flags.MODEL,
            Flag("task", "a task, several (a,b), or all that can read the file's columns", default="all"),
            flags.INPUT,
            Flag("output", "file to write: .jsonl or .csv", required=True),
            *flags.HOW_ROWS_ARE_READ,
            Flag(
                "window_rows",
                "rows that are sorted by length together, and that a killed run loses at most",
                default="2048",
            ),
            *flags.HOW_FILES_ARE_ANSWERED,
        ),
        positional="model",
        from_launcher=True,
        goes_on=True,
    ),
    Verb(
        "embed",
        "write the encoder's embedding of every row of a file",
        (
            flags.MODEL,
            flags.INPUT,
            Flag("output", "file to write: .npy or .parquet", required=True),
            Flag(
                "pooling",
                "cls: the first token's hidden state; mean: the mean over all tokens",
                default="cls",
            ),
            Flag("layer", "whose hidden states: -1 the last layer's, 0 the embeddings'", default="-1"),
            Flag("task", "soft and low-rank sharing: the task whose encoder it is"),
            *flags.HOW_ROWS_ARE_READ,
            Flag("window_rows", "rows that are sorted by length together", default="2048"),
            *flags.HOW_FILES_ARE_ANSWERED,
        ),
        positional="model",
        from_launcher=True,
    ),
    Verb(
        "serve",
        "answer texts over HTTP, with a page that shows every task's answer",
        (
            flags.MODEL,
            Flag("host", "address to listen on; other machines reach 0.0.0.0", default="127.0.0.1"),
            Flag("port", "port to listen on", default="8000"),
            flags.CHECKPOINT,
            flags.DTYPE,
            Flag("max_batch_tokens", "tokens of a micro-batch; default: the training run's"),
            Flag("max_wait_ms", "how long a request waits for others to share a pass with", default="5"),
            Flag("max_texts", "most texts of a request", default="256"),
            Flag("max_chars", "most characters of a text with all its parts", default="20000"),
            Flag(
                "max_queue", "most texts that wait; further requests are told to come again", default="4096"
            ),
            flags.TRUST_PLUGINS,
            flags.LOG_LEVEL,
        ),
        positional="model",
    ),
    Verb(
        "export",
        "write a run as folders for transformers, ONNX or sentence-transformers, each compared with the run",
        (
            flags.RUN_DIR,
            Flag("task", "this task only; default: the encoder, the whole model and every task"),
            Flag(
                "checkpoint",
                "best (best/TASK with --task, else best/average), best/NAME, step_N, N or latest",
                default="best",
            ),
            Flag("output_dir", "where the folders go; default: the folder export in the run folder"),
            Flag("format", "hf | onnx | sentence-transformers | all", default="hf"),
            flags.LOG_LEVEL,
        ),
        positional="run_dir",
    ),
    Verb(
        "verify",
        "measure a recipe's promises (exactness, ZeRO, ranks, resuming) "
        "with small runs, and print a certificate",
        (
            flags.RECIPE,
            flags.DEEPSPEED,
            Flag("max_ranks", "ranks of the runs on several", default="2"),
            Flag("certificate", "file to write the results to, as JSON"),
            flags.LOG_LEVEL,
        ),
        takes_settings=True,
        positional="recipe",
    ),
    Verb(
        "doctor",
        "check this machine, or under a launcher a whole cluster, for what would hurt a long run",
        (
            Flag(
                "output_dir",
                "folder that runs will be written to, on a disk that all nodes share; default: runs",
            ),
            Flag(
                "gpu",
                "instead: what the CUDA path of this machine computes, and how fast, in nine minutes at most",
                is_switch=True,
            ),
            Flag("output", "with --gpu: folder for gpu.json and gpu.md; default: runs/gpu"),
            Flag("rehearse", "with --gpu: the same on a CPU at toy size, in minutes", is_switch=True),
            flags.LOG_LEVEL,
        ),
        from_launcher=True,
    ),
    Verb(
        "bundle",
        "pack this checkout, the wheels that a node lacks, weights and data into one folder, "
        "for machines without a network",
        flags.BUNDLE,
    ),
)

VERBS: dict[str, Verb] = {verb.name: verb for verb in _TABLE}
