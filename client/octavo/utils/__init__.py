"""Paths that users of vLLM import from."""

from octavo.utils.argparse_utils import FlexibleArgumentParser

__all__ = ["FlexibleArgumentParser"]
