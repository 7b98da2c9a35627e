"""BatchJobs: one Job each, whose pod has a file answered as a batch of the platform.

observed       one moment of one BatchJob
outcome        how it ended, or what it waits for, from its pods and its batch
decide         the decision: Job, status, events, the end of its time
watches        what kopf tells of BatchJobs, their Jobs and pods
open_batches   what Redis says of their batches; cancels those whose BatchJob is gone
reconciler     a turn
parts          all of these together
"""
