"""Teachers: what finished runs answer on a student's training examples."""
