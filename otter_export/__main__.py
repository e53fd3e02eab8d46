"""``python -m otter_export``: the same as the console script."""

from otter_export.cli.main import main

if __name__ == "__main__":
    main()
