"""Flags that `octavo batch submit` and `octavo batch run` share."""

from typing import Annotated

from octavo.cli.options import option

DEFAULT_ENDPOINT = "/v1/chat/completions"
DEFAULT_WINDOW = "24h"

Endpoint = Annotated[str, option("--endpoint", help="Where all of the requests go.")]
Window = Annotated[str, option("--window", help="How long the platform may take: 30m, 24h, 7d.")]
Priority = Annotated[
    int,
    option("--priority", help="Of batches, those of lower numbers go first.", min=-1000, max=1000),
]
