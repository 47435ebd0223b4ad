"""What runs beside the parts of doctor --gpu, until it is ended. Not a test file."""

from __future__ import annotations

import os
import time

if __name__ == "__main__":
    print(f"beside the parts: {os.getpid()}", flush=True)
    time.sleep(600)
