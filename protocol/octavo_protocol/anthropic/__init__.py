"""Anthropic wire types: requests as the router and every replica parse them, and answers."""

from octavo_protocol.anthropic.requests import CountTokensRequest as CountTokensRequest
from octavo_protocol.anthropic.requests import MessagesRequest as MessagesRequest
