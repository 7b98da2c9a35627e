"""What crosses a boundary between Octavo's parts: parameters, outputs, wire types, hashes, keys.

No torch, no FastAPI, no kopf: every part can import this package, and none of it does I/O.
"""
