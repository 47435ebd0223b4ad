"""Many small runs that are compared: adapt (how much data a new task needs) and compare (tasks alone and
together).
"""
