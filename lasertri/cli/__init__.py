"""The command line. Results go to standard output, everything else to standard error."""

# each registers its command, in the order that --help lists them
from lasertri.cli import adapt, refine, demo, apply, compare, compress, evaluate, reproduce, info  # noqa: F401, I001
from lasertri.cli.app import app

__all__ = ["app"]
