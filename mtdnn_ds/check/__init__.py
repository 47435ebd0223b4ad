"""Before one relies on anything: check_task, doctor, verify, and what plan finds. Keeps no model."""
