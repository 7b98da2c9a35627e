"""Lists in request bodies."""

from typing import Annotated, TypeVar

from pydantic import Field

_T = TypeVar("_T")
# A list that ends at its first bad item. Only that one is reported; with a complaint for each, a
# body of a few megabytes would hold the server for half a minute and gigabytes of memory.
List = Annotated[list[_T], Field(fail_fast=True)]
