"""`python -m bertc` is the command line."""

from .cli._main import main

main()
