"""Exit codes that a job script acts on. The others are 0, 1, 2 and 130 (docs/resume.md)."""

STOPPED = 85  # stopped on request, everything saved: the same command with --resume auto goes on
LOST = 75  # a rank is lost or hangs: the same command with --resume auto goes on from the last checkpoint
