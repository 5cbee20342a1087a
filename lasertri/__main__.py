"""`python -m lasertri` is the command line."""

from lasertri.cli import app

app(prog_name="lasertri")
