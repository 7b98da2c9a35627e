"""Every reason that a condition can have; docs/kubernetes.md explains them."""

from enum import StrEnum


class Reason(StrEnum):
    # Valid
    VALID = "Valid"
    INVALID = "Invalid"
    # Ready
    SERVING = "Serving"
    SERVING_OLDER_SPEC = "ServingOlderSpec"
    LOADING = "Loading"
    NO_REPLICA_READY = "NoReplicaReady"
    SCALED_TO_ZERO = "ScaledToZero"
    NAME_TAKEN = "NameTaken"
    # Progressing
    COMPLETE = "Complete"
    ROLLING_OUT = "RollingOut"
    SCALING = "Scaling"
    DRAINING = "Draining"
    WAITING_FOR_MODEL = "WaitingForModel"
    PAUSED = "Paused"
    STALLED = "Stalled"
    # Degraded, and Ready where nothing serves
    NOTHING_FAILS = "NothingFails"
    APPLY_FAILED = "ApplyFailed"
    PODS_REFUSED = "PodsRefused"
    IMAGE_PULL_FAILED = "ImagePullFailed"
    CANNOT_START = "CannotStart"
    OUT_OF_MEMORY = "OutOfMemory"
    CONTAINER_FAILED = "ContainerFailed"
    UNSCHEDULABLE = "Unschedulable"
    POD_LOST = "PodLost"
    # ModelCached
    DOWNLOADED = "Downloaded"
    DOWNLOADING = "Downloading"
    DOWNLOAD_FAILING = "DownloadFailing"
    DOWNLOAD_FAILED = "DownloadFailed"
    # Fits
    FITS = "Fits"
    DOES_NOT_FIT = "DoesNotFit"
    # AdaptersLoaded, and Ready of a LoraAdapter
    LOADED = "Loaded"
    LOAD_FAILED = "LoadFailed"
    NO_ROOM = "NoRoom"
    SECRET_MISSING = "SecretMissing"
    TARGET_MISSING = "TargetMissing"
    # Scaled
    WITHIN_BOUNDS = "WithinBounds"
    AT_MAXIMUM = "AtMaximum"
    NO_MEASUREMENTS = "NoMeasurements"
    # Accepted
    ACCEPTED = "Accepted"
    SPEC_CHANGED = "SpecChanged"
    # Running
    STARTING = "Starting"
    IN_PROGRESS = "InProgress"
    WRITING_RESULTS = "WritingResults"
    # Complete, Failed, and Running after the end
    COMPLETED = "Completed"
    NOT_FINISHED = "NotFinished"
    BATCH_FAILED = "BatchFailed"
    BATCH_EXPIRED = "BatchExpired"
    BATCH_CANCELLED = "BatchCancelled"
    GAVE_UP = "GaveUp"
    # Registered
    REGISTERED = "Registered"
    REDIS_UNAVAILABLE = "RedisUnavailable"


# What every deployment passes through and nobody needs to be warned of.
EXPECTED = frozenset(
    {
        *(Reason.LOADING, Reason.NO_REPLICA_READY, Reason.SCALED_TO_ZERO),
        *(Reason.WAITING_FOR_MODEL, Reason.DOWNLOADING),
    }
)
