"""`python -m mcgen` is the command `mcgen`."""

from mcgen.cli.main import main

main(prog_name="mcgen")
