"""A prediction that kills itself: `python predict_and_die.py MODEL INPUT OUTPUT N`, SIGKILL at the Nth fsync
of the output's record or lines.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from mtdnn_ds.predict import output as output_module
from mtdnn_ds.predict.files import predict_file
from mtdnn_ds.predict.model import MultiTaskModel
from mtdnn_ds.predict.table import open_table


def main(model: str, source: str, output: str, deadly: str) -> None:
    fsync, calls = os.fsync, [0]

    def counting(descriptor: int) -> None:
        fsync(descriptor)
        calls[0] += 1
        if calls[0] == int(deadly):
            os.kill(os.getpid(), signal.SIGKILL)

    output_module.os.fsync = counting  # type: ignore[attr-defined]
    table = open_table(source, text_columns=None, id_column=None)
    predict_file(MultiTaskModel.from_pretrained(model), table, Path(output), asked=None, window_rows=4)


if __name__ == "__main__":
    main(*sys.argv[1:])
