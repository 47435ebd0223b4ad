"""Everything that can be found wrong before any work."""
