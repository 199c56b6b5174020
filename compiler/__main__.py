"""`python -m bertc` is the command line."""

from .cli import main

main()
