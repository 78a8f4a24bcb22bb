"""`python -m oxe_curate`, which is what torchrun wants."""

from oxe_curate.cli.main import main

main()
