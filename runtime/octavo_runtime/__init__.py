"""The runtime: the engine and the server of one replica."""
