"""What bertc claims, measured: one file a claim, each run by `make bench`."""
