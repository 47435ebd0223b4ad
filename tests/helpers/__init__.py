"""What several tests use: real runs in real processes, reference loops, generated data. No tests."""
