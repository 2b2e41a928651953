"""Costs of single parts, as multiples of one known part, and whether they grow: ``python -m loadtests.micro``."""
