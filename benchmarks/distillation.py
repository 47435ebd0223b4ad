"""A training step with soft targets against the same step without, in one run. Measures time, not accuracy.

    python -m benchmarks.distillation [--glue_dir DIR --tasks mnli,qqp,stsb]

A step is everything from the examples on: gathering, collating, forward, losses, backward, AdamW. Both sides
take the same examples in the same steps, in fp32 on MiniLM, with weights of their own, and take turns (A B, B
A, ...). The soft targets are drawn at random: what they cost does not depend on their values. Computing them
once with the teacher is a forward over the training examples, and is not measured.
"""

from __future__ import annotations

import json
import statistics

import numpy as np
import torch

from benchmarks.sides import MINILM, Side, measure, median_ratio, parser_for
from mtdnn_ds.config.encoder_path import resolve_encoder_path
from mtdnn_ds.config.recipe import DataSettings
from mtdnn_ds.data.batches.collate import ExampleSets, collate
from mtdnn_ds.data.cache.build import prepare
from mtdnn_ds.data.cache.soft_targets import RowsByExample, soft_targets
from mtdnn_ds.data.examples import Examples, make_examples
from mtdnn_ds.data.examples.distilled import DistilledExamples
from mtdnn_ds.losses.distillation import Distillation
from mtdnn_ds.losses.forms import build_losses
from mtdnn_ds.model.multitask import build_model
from mtdnn_ds.runs.device import keep_freed_memory
from mtdnn_ds.tasks.layout import head_layout
from mtdnn_ds.tasks.resolve import builtin_task
from mtdnn_ds.tasks.spec import TaskSpec
from mtdnn_ds.train.distillation.teachers import answer_of

QUICKSTART = "quickstart_sentiment,quickstart_paraphrase,quickstart_entailment,quickstart_similarity"
SETTINGS = Distillation(temperature=2.0, weight=0.5)


def with_soft_targets(spec: TaskSpec, examples: Examples, random: np.random.Generator) -> Examples:
    """The examples with the answers of a made-up teacher."""
    answer = answer_of(spec)
    assert answer is not None, f"{spec.name} cannot be distilled"
    scores = random.normal(size=(examples.num_examples, max(len(spec.labels), 1))).astype(np.float32)
    outputs = RowsByExample(values=scores, offsets=np.arange(examples.num_examples + 1))
    return DistilledExamples(examples, soft_targets(answer, [outputs], SETTINGS.temperature))


def make_side(
    name: str,
    specs: tuple[TaskSpec, ...],
    sets: list[Examples],
    chosen: np.ndarray,
    distillation: Distillation | None,
) -> Side:
    layout = head_layout(specs)
    model = build_model(encoder_path=resolve_encoder_path(MINILM), specs=specs, layout=layout)
    losses = build_losses(layout, specs, "cpu", distillation)

    owner = np.repeat(np.arange(len(sets)), [examples.num_examples for examples in sets])
    row = np.concatenate([np.arange(examples.num_examples) for examples in sets])

    def loss(index: int) -> torch.Tensor:
        members = chosen[index]
        batch = collate(
            owner[members],
            row[members],
            np.zeros(len(members), dtype=np.int64),
            ExampleSets(
                examples=sets,
                tasks=range(len(sets)),
                layout=layout,
                filler_ids=np.zeros(0, dtype=np.int64),
            ),
        )
        return losses.sums(losses.of_batch(model(batch), batch.targets)).total.sum() / len(members)

    return Side(name=name, loss=loss, optimizer=torch.optim.AdamW(model.parameters(), lr=1e-5))


def main() -> None:
    parser = parser_for(__doc__)
    parser.add_argument("--glue_dir", help="folder in the official GLUE layout, for its tasks")
    parser.add_argument("--tasks", default=QUICKSTART, help="names, separated by commas")
    parser.add_argument("--batch", type=int, default=32, help="examples per step")
    parser.add_argument("--steps", type=int, default=8, help="different steps, each done once per repeat")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--cache_dir", default=".cache/mtdnn_ds")
    arguments = parser.parse_args()
    keep_freed_memory()

    data = DataSettings.model_validate({"glue_dir": arguments.glue_dir})
    specs = tuple(builtin_task(name, data) for name in arguments.tasks.split(","))
    prepared = prepare(
        specs, tokenizer_path=resolve_encoder_path(MINILM), cache_dir=arguments.cache_dir, splits=("train",)
    )
    random = np.random.default_rng(0)
    plain = [make_examples(spec, prepared[spec.name]["train"], max_length=128) for spec in specs]
    distilled = [
        with_soft_targets(spec, examples, random) for spec, examples in zip(specs, plain, strict=True)
    ]
    num_examples = sum(examples.num_examples for examples in plain)
    chosen = random.choice(num_examples, size=(arguments.steps, arguments.batch), replace=False)

    sides = [
        make_side("plain", specs, plain, chosen, None),
        make_side("distilled", specs, distilled, chosen, SETTINGS),
    ]
    cpu = torch.device("cpu")
    seconds = measure(sides, arguments.steps, warmup=2, repeats=arguments.repeats, device=cpu).wall
    ratio = median_ratio(seconds["distilled"], seconds["plain"])

    for name, values in seconds.items():
        print(f"{name:10}{1000 * statistics.median(values) / arguments.steps:10.1f} ms/step")
    print(
        f"a distilled step takes {ratio:.3f} times as long as a plain one "
        f"(median of {arguments.repeats} repeats)"
    )
    rounded = {name: [round(value, 4) for value in values] for name, values in seconds.items()}
    print(json.dumps({"ratio": round(ratio, 4), "seconds": rounded}))


if __name__ == "__main__":
    main()
