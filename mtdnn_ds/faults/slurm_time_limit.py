"""The end of this process's SLURM job, and whether a run must stop before it.

Asks SLURM once, and no other scheduler. A run stops when  now + margin + longest step seen + longest save
seen >= end,  so that a whole step and a save still fit.
"""

from __future__ import annotations

import os
import re
import subprocess
import time
from dataclasses import dataclass
from datetime import datetime

SECONDS_TO_ANSWER = 20


def job_end() -> float | None:
    """When the job is ended, in seconds since the epoch; None where there is no job, limit or answer."""
    stated = os.environ.get("SLURM_JOB_END_TIME", "")
    if stated.isdecimal():
        return float(stated)

    job = os.environ.get("SLURM_JOB_ID")
    if not job:
        return None

    left = parse_time_left(_answer("squeue", "--noheader", f"--jobs={job}", "--format=%L"))
    if left is not None:
        return time.time() + left

    found = re.search(r"\bEndTime=(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)", _answer("scontrol", "show", "job", job))
    if found is None:
        return None
    return datetime.fromisoformat(found[1]).timestamp()  # SLURM writes local time


def parse_time_left(text: str) -> float | None:
    """Seconds of squeue's %L: `1-02:03:04`, `02:03:04`, `3:04`; None for UNLIMITED, INVALID and the like."""
    found = re.match(r"\s*(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)\s", text + "\n")
    if found is None:
        return None
    days, hours, minutes, seconds = (int(part or 0) for part in found.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60.0 + seconds


def _answer(*command: str) -> str:
    """What a command prints; nothing where there is no such program, or the controller is away."""
    try:
        ended = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS_TO_ANSWER, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return ended.stdout


@dataclass(kw_only=True)
class TimeLimit:
    """When a run must stop; its figures grow with what the run sees. `end` None: never."""

    end: float | None  # seconds since the epoch
    margin: float
    longest_step: float = 0.0
    longest_save: float = 0.0

    def is_near(self) -> bool:
        """Whether no further step and save fit in."""
        if self.end is None:
            return False
        needed = self.margin + self.longest_step + self.longest_save
        return time.time() + needed >= self.end

    def describe(self) -> str:
        """The limit in words; there must be one."""
        assert self.end is not None
        at = datetime.fromtimestamp(self.end).astimezone()
        return f"the job's time limit ends at {at:%Y-%m-%d %H:%M:%S}"
