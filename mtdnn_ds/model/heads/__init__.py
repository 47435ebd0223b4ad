"""The heads of all tasks: linear banks, SAN, masked words, poolers, and heads of the user's own."""
