"""`octavo doctor`: what the machine offers, and what to do about what is missing."""

from typing import Annotated

import typer


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    port: Annotated[int, typer.Option(help="The port that `octavo up` would take.")] = 8000,
) -> None:
    """Check this machine; say how to mend what is missing.

    Reads only this machine: nothing is downloaded and no network is asked. Exits with 1 when
    something is missing that Octavo cannot run without.
    """
    from octavo import doctor as checks

    findings = checks.examine(port=port)
    print(checks.as_json(findings) if as_json else checks.as_table(findings))
    if any(finding.level is checks.Level.MISSING for finding in findings):
        raise typer.Exit(1)
