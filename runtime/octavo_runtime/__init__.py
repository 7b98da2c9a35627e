"""The runtime: the engine and the server of one replica."""

import os

# How long OpenMP workers spin for the next operation before they sleep, in loops; libgomp reads it
# when torch loads. With libgomp's own default a worker burns a core for milliseconds whenever
# another process wants that core: measured on 2 cores, one busy neighbour makes a decode step 4
# times slower than with this value, which costs 15 % on an idle machine. Set it yourself for pods
# with cores of their own (docs/cli.md).
os.environ.setdefault("GOMP_SPINCOUNT", "1000")
