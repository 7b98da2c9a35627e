"""`octavo version`."""


def version() -> None:
    """Print Octavo's version."""
    from importlib import metadata

    print(metadata.version("octavo"))
