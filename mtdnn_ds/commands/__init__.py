"""One file per verb, each with `run(...)`, imported when the verb is called.

Verbs and their flags are listed in verbs.py.
"""
