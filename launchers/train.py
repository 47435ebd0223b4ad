"""Training entry point for `deepspeed launchers/train.py ...`, torchrun, srun and plain python.

The logic is in mtdnn_ds/cli.py.
"""

import sys
from pathlib import Path

# Works from any directory, installed or not.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from mtdnn_ds.cli import train_main

if __name__ == "__main__":
    sys.exit(train_main())
