"""`python -m pocketclip` is the command line."""

from pocketclip.cli.main import main

main()
