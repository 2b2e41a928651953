"""Benchmarks of the proxy beside its peers. `README.md` tells the method, ``python -m loadtests`` runs them."""
