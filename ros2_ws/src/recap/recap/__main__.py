"""`python -m recap`: the command line."""

from recap.cli import main

main()
