"""Checkpoints in the layouts of other repositories, read into this package's adapter folders.

One file for each family of layouts; ``layouts`` lists them all, ``run`` imports.
"""
