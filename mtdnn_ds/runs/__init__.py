"""A run folder and what is in it: opened, set up from a recipe, evaluated, locked. Trains nothing."""
