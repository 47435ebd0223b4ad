"""The watch over all ranks: rank 0 hears the others, judges who is lost, and ends the run in time."""
