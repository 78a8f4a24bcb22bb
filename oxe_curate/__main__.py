"""`python -m oxe_curate`, as torchrun requires."""

from oxe_curate.cli.main import main

main()
