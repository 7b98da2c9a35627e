"""A trace of block hashes sent to real servers: the other half of `octavo.sim`.

prompts makes up prompts that share what the trace says they share; player sends them in time;
report sums up.
"""
