"""What `octavo sim` and `octavo replay` share: which trace is played, and how."""

from pathlib import Path
from typing import Annotated

import typer

from octavo.cli.options import option

Trace = Annotated[
    Path,
    typer.Argument(
        help="Requests, one JSON object per line: timestamp (ms), input_length, output_length "
        "and, where prefixes are shared, hash_ids of the prompt's blocks.",
        show_default=False,
    ),
]
BlockSize = Annotated[
    int | None,
    option(
        "--block-size",
        help="Tokens of one block. Another size than the trace's makes its prompts and answers "
        "longer or shorter by as much.",
        min=1,
        show_default="of the trace",
    ),
]
Speed = Annotated[float, option("--speed", help="Plays the trace so many times faster.", min=0.001)]
Limit = Annotated[int | None, option("--limit", help="Only the first so many requests.", min=1)]
