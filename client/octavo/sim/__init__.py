"""A simulated fleet: replicas with a real block pool and a cost model, behind the real router.

trace     requests as lengths and block hashes, from files
adapters  which requests ask for an adapter, and what a replica has of them
replica   one replica: queue, steps, prefix cache; time is computed, not spent
options   what the fleet is made of
fleet     replicas, the router's own decisions, failures, on one virtual clock
report    what came of it
"""
