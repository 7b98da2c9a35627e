"""Every Redis key that Octavo uses.

octavo:deployments           hash: `deployment_field` -> msgpack `DeploymentRecord` of every
                             deployment of a cluster; the operator writes all of it again on a timer
octavo:tenant:{name}:…       limits of a tenant (the router's `redis_limits.py`): `state`, a hash of
                             rates, budgets and what is reserved; `open`, its open requests by the
                             ends of their leases; `reserved`, the tokens that each has reserved
octavo:usage                 stream of finished requests, bounded in length
octavo:usage:{day}           hash of a day's sums: JSON [tenant, model, what] -> number; kept for
                             `USAGE_DAYS`
octavo:file:{id}             msgpack record of one stored file (`octavo_router/files/file_store.py`)
octavo:files:{owner}         sorted set: file id -> Unix time of its creation
octavo:files_expiring        sorted set: id of a file with an end -> Unix time of that end
octavo:batch:{id}            hash of one batch; beside it `:chunks` (stream), `:results:{n}` and
                             `:done` (hashes) while it runs (`octavo_router/batches/store.py`)
octavo:batches:{owner}       sorted set: batch id -> Unix time of its creation
octavo:batches_open          sorted set: id of a batch that has not ended -> `BatchRecord.rank`

and under `octavo:{namespace}:{deployment}:`

replica:{id}                 record with a time to live (msgpack `ReplicaRecord`)
replicas                     sorted set: replica id -> Unix time of its last heartbeat; an index
                             over the records, so that nobody needs SCAN
events:{incarnation}         stream of KV event batches; entry id `{seq}-0`, field `batch`
snapshot:{incarnation}       msgpack `KVSnapshot` of all cached blocks as of a sequence number
snapshot_wanted:{incarnation}  set by a consumer that saw a gap; the replica answers and deletes
download                     how far the model's download is (msgpack `DownloadRecord`), for as long
                             as it goes on
journal:{stream}             hash: who generates a stream that can be resumed, and how far it is
journal_events:{stream}      stream of its events so far; entry id `{number of the last event}-0`
journals                     sorted set: stream -> Unix time in ms after which it is forgotten
journal_bytes                hash: stream -> bytes of its events; field `total`: of all of them
"""

from dataclasses import dataclass

RECORD_TTL_S = 5
HEARTBEAT_S = 1.0
EVENT_STREAM_MAXLEN = 10_000
SNAPSHOT_TTL_S = 60
DOWNLOAD_TTL_S = 30
EVENT_FIELD = b"batch"
DEPLOYMENTS = "octavo:deployments"
USAGE = "octavo:usage"
USAGE_DAYS = 400
FILES_EXPIRING = "octavo:files_expiring"
BATCHES_OPEN = "octavo:batches_open"


def deployment_field(namespace: str, deployment: str) -> str:
    """A deployment's field in the hash `DEPLOYMENTS`. Neither name has a slash in it."""
    return f"{namespace}/{deployment}"


def tenant_keys(name: str) -> tuple[str, str, str]:
    """`state`, `open` and `reserved` of a tenant; all in one slot of a Redis cluster."""
    prefix = f"octavo:tenant:{{{name}}}:"
    return prefix + "state", prefix + "open", prefix + "reserved"


def usage_day(day: str) -> str:
    """day: as 2026-01-31, in UTC."""
    return f"{USAGE}:{day}"


def file_key(file_id: str) -> str:
    return f"octavo:file:{file_id}"


def file_index_key(owner: str) -> str:
    return f"octavo:files:{owner}"


def batch_key(batch_id: str, part: str = "") -> str:
    """part: "chunks", "done", "results:{n}" …; "" is the batch itself."""
    return f"octavo:batch:{batch_id}:{part}" if part else f"octavo:batch:{batch_id}"


def batch_index_key(owner: str) -> str:
    return f"octavo:batches:{owner}"


@dataclass(frozen=True, slots=True)
class Keys:
    """Keys of one deployment."""

    namespace: str
    deployment: str

    @property
    def prefix(self) -> str:
        return f"octavo:{self.namespace}:{self.deployment}:"

    def replica(self, replica_id: str) -> str:
        return f"{self.prefix}replica:{replica_id}"

    @property
    def replicas(self) -> str:
        return f"{self.prefix}replicas"

    def events(self, incarnation: str) -> str:
        return f"{self.prefix}events:{incarnation}"

    def snapshot(self, incarnation: str) -> str:
        return f"{self.prefix}snapshot:{incarnation}"

    def snapshot_wanted(self, incarnation: str) -> str:
        return f"{self.prefix}snapshot_wanted:{incarnation}"

    @property
    def download(self) -> str:
        return f"{self.prefix}download"

    def journal(self, stream: str) -> str:
        return f"{self.prefix}journal:{stream}"

    def journal_events(self, stream: str) -> str:
        return f"{self.prefix}journal_events:{stream}"

    @property
    def journals(self) -> str:
        return f"{self.prefix}journals"

    @property
    def journal_bytes(self) -> str:
        return f"{self.prefix}journal_bytes"
