"""`python -m bertc` and `bertc` are the command line, also where memory is too short to import it."""

import os
import sys

# How the loader says it (glibc, musl); core/exhausted.py, which knows more of them, cannot be imported then.
SHORT = ("failed to map segment", "annot allocate memory", "cannot create shared object descriptor")


def main() -> None:
    """Run the command line and exit with its code; 3 where there is no memory for its modules."""
    try:
        from .cli import main as command
    except (ImportError, MemoryError, OSError) as error:
        if not isinstance(error, MemoryError) and not any(each in str(error) for each in SHORT):
            raise
        os.write(2, b"error: out of memory: there is too little to start bertc; give it more\n")
        sys.exit(3)
    command()


if __name__ == "__main__":
    main()
