"""The learning study of docs/learning.md: does what the paper claims hold here, on real data, with seeds?

One command a table: `python -m benchmarks.learning TABLE --data DIR`. Measures scores, not time.
"""
