"""`lasertri`, or `python -m lasertri`: the command line."""

import sys

from lasertri.support.interrupts import interrupted, note_interrupts


def main() -> None:
    """Run a command; an interrupt while it is still imported ends it as one while it works does."""
    note_interrupts()
    try:
        from lasertri.cli import app

        app(prog_name="lasertri")
    except (Exception, KeyboardInterrupt):
        if not interrupted():
            raise
        print("lasertri: interrupted", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
