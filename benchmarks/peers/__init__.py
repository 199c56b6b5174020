"""Servers of other projects over an artifact: each needs a package that the benchmarks alone would not install."""
