"""A folder for machines without a network: the checkout, the wheels that a node lacks, weights and data, and
a script that installs and runs there. Runs nothing itself.
"""
