"""What ends a run and what survives it: stop requests, heartbeats, exit codes, leftovers. Trains nothing."""
