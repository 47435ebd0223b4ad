"""Scripts that tests start as processes of a run, and what they do there. No tests."""
