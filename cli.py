"""Runs the command line from a checkout; an installed copy has the `oxe-curate` command."""

from oxe_curate.cli.main import main

if __name__ == "__main__":
    main()
