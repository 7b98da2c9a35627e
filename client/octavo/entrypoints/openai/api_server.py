"""`python -m octavo.entrypoints.openai.api_server --model NAME ...`: the former `octavo serve`."""

import sys
import warnings
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> None:
    """Serves as `octavo serve NAME ...` does, with a DeprecationWarning."""
    from octavo.cli.main import main as command

    warnings.warn(
        "python -m octavo.entrypoints.openai.api_server is now: octavo serve MODEL",
        DeprecationWarning,
        stacklevel=2,
    )
    command(["serve", *(sys.argv[1:] if arguments is None else arguments)])


if __name__ == "__main__":
    main()
