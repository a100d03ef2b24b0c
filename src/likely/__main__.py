"""`python -m likely` and the `likely` command."""

from likely.cli import main

__all__ = ["main"]

if __name__ == "__main__":
    main()
