"""`python -m octavo.entrypoints.openai.api_server --model NAME ...`: the former `octavo serve`."""

import sys
from collections.abc import Sequence

from octavo_protocol.deprecation import warn_former


def main(arguments: Sequence[str] | None = None) -> None:
    """Serves as `octavo serve NAME ...` does, with a DeprecationWarning."""
    from octavo.cli.main import main as command

    warn_former("python -m octavo.entrypoints.openai.api_server is now: octavo serve MODEL")
    command(["serve", *(sys.argv[1:] if arguments is None else arguments)])


if __name__ == "__main__":
    main()
