"""What the priority of a request says, beyond an order: lower numbers go first."""

# Requests of this priority or a higher number are background work: under every scheduling policy
# they get what the others leave, and make room for them within a step. Batches run so.
BACKGROUND_PRIORITY = 2**30


def is_background(priority: int) -> bool:
    return priority >= BACKGROUND_PRIORITY
