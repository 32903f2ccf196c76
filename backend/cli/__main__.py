"""`python -m backend.cli`: the `transfiner` program where it is not installed."""

from backend.cli.main import main

if __name__ == "__main__":
    main()
