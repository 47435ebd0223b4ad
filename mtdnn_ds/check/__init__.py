"""Layer 4: checks of a task on hand-written rows, through every part of the project that a run uses."""
