"""Structured outputs: what a request asks for → a grammar → masks of the tokens that may come."""
