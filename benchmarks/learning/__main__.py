"""python -m benchmarks.learning TABLE --data DIR: train what is missing of a table, and print it.

A run that has its line in the results is not trained again; an interrupted one goes on from its checkpoint.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from benchmarks.learning.runs import read_results, run_table
from benchmarks.learning.summary import forgetting, summary
from benchmarks.learning.tables import TABLES, Inputs
from mtdnn_ds import dist
from mtdnn_ds.cli import guarded
from mtdnn_ds.monitor.console import configure_logging, speaking

RESULTS = Path(__file__).parent / "results"
DEEPSPEED_CONFIG = "ds_configs/zero2.json"


def main() -> int:
    """The exit code, as `python -m mtdnn_ds` has it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("table", choices=[*TABLES])
    parser.add_argument("--data", type=Path, required=True, help="folder with glue/, SciTail/")
    parser.add_argument("--glue_run", type=Path, help="a finished run of recipes/glue_small.yaml")
    parser.add_argument("--seeds", help="comma-separated; default: the table's own")
    parser.add_argument("--output_dir", type=Path, default=Path("runs/learning"))
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the committed results")
    arguments = parser.parse_args()
    configure_logging("warning", dist.rank())

    table = TABLES[arguments.table]
    seeds = table.seeds
    if arguments.seeds:
        seeds = tuple(int(seed) for seed in arguments.seeds.split(","))

    inputs = Inputs(data=arguments.data, folder=arguments.output_dir, glue_run=arguments.glue_run)
    results = arguments.results / f"{arguments.table}.jsonl"
    with speaking():
        run_table(
            table.runs(inputs, seeds),
            folder=arguments.output_dir / arguments.table,
            results=results,
            deepspeed_config=DEEPSPEED_CONFIG,
        )
    if dist.is_main():
        scored = [*read_results(results).values()]
        print("\n".join(summary(table, scored)))
        for line in forgetting(table, scored):
            print(line)
    return 0


if __name__ == "__main__":
    sys.exit(guarded(main))
