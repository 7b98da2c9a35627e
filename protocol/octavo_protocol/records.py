"""What a replica tells the cluster through Redis, and its encoding (msgpack).

The stream of an incarnation is a log of batches with rising sequence numbers. Applying those after
`KVSnapshot.seq` in order to the snapshot's blocks gives the blocks that the replica holds, as long
as no number is missing. A consumer that sees a gap reads the snapshot again, and asks for a newer
one if it is not new enough (`keys.py`).
"""

import msgspec


class AdapterError(msgspec.Struct, array_like=True):
    """Why the last attempt to load an adapter failed. origin: as of `AdapterSource.origin`."""

    origin: str
    message: str


class ReplicaRecord(msgspec.Struct, omit_defaults=True):
    """State of one live replica, refreshed every second.

    url: base URL that the router calls. incarnation: random per start. model: served model name;
    aliases in `served_names`. cache_model: the `HashIdentity.model` that its hashes bind.
    background_*: the part of background requests in the three before, which other requests pass.
    Rates are tokens per second, measured by the replica over its recent steps; 0 = not yet known.
    max_num_seqs: sequences that may run at once; 0 = not known. prefix_hit_tokens: prompt tokens
    that the prefix cache supplied since the start. takes_prompt_tokens: it reads the token ids of
    `overrides.PromptTokens`. adapters: names it answers to now. loaded_adapters: those of them that
    are in its memory; a request for another one waits until it is loaded again. adapter_versions:
    the version that block hashes bind, by adapter. adapter_sources: what each was loaded from, as
    `AdapterSource.origin` writes it. max_adapters: that fit its memory; 0 = it takes none.
    adapter_load_s: how long a load took lately, in seconds; 0 = not yet known. adapter_errors: of
    the last few adapters that could not be loaded.
    """

    replica_id: str
    incarnation: str
    url: str
    model: str
    cache_model: str
    block_size: int
    num_blocks: int
    max_model_len: int
    served_names: list[str] = []
    adapters: list[str] = []
    running: int = 0
    waiting: int = 0
    waiting_tokens: int = 0
    background_running: int = 0
    background_waiting: int = 0
    background_waiting_tokens: int = 0
    kv_usage: float = 0.0
    prefill_tokens_per_s: float = 0.0
    decode_tokens_per_s: float = 0.0
    draining: bool = False
    ready: bool = True
    tokenizer_id: str = ""
    max_num_seqs: int = 0
    prefix_hit_tokens: int = 0
    takes_prompt_tokens: bool = False
    loaded_adapters: list[str] = []
    adapter_versions: dict[str, str] = {}
    adapter_sources: dict[str, str] = {}
    max_adapters: int = 0
    adapter_load_s: float = 0.0
    adapter_errors: dict[str, AdapterError] = {}


class AdapterSource(msgspec.Struct, omit_defaults=True):
    """An adapter that replicas of a deployment can load.

    source, revision: as in a manifest's model. on_demand: loaded where requests come; else
    wherever the model is.
    """

    name: str
    source: str
    revision: str | None = None
    on_demand: bool = False

    @property
    def origin(self) -> str:
        """`source@revision`, or the source alone."""
        return adapter_origin(self.source, self.revision)


class DeploymentRecord(msgspec.Struct, omit_defaults=True):
    """A deployment as the routers of its cluster know it.

    served_names: models that clients ask for by these names. policy: a `RoutingPolicyName`.
    created_at: Unix time; of two deployments with one served name the older keeps it.
    adapters: of its model, each under a name that clients may ask for.
    """

    namespace: str
    deployment: str
    served_names: list[str]
    policy: str
    created_at: float
    adapters: list[AdapterSource] = []


class DownloadRecord(msgspec.Struct, omit_defaults=True):
    """How far a deployment's model is on its way into a folder.

    folder: where the downloading container writes it. stage: what is done now; bytes count within
    it. total_bytes: None where it is not known.
    """

    folder: str
    stage: str
    done_bytes: int
    total_bytes: int | None = None


class BlocksStored(msgspec.Struct, tag="stored", array_like=True):
    """Blocks that are now cached: a chain that follows `parent` (None = start of a prompt)."""

    parent: bytes | None
    hashes: list[bytes]
    tier: str = "device"


class BlocksRemoved(msgspec.Struct, tag="removed", array_like=True):
    """Blocks that were evicted."""

    hashes: list[bytes]


class CacheCleared(msgspec.Struct, tag="cleared", array_like=True):
    """The whole prefix cache was reset."""


KVEvent = BlocksStored | BlocksRemoved | CacheCleared


class KVEventBatch(msgspec.Struct, array_like=True):
    """Events of one or more steps, in order."""

    seq: int
    events: list[KVEvent]


class KVSnapshot(msgspec.Struct, array_like=True):
    """All cached blocks after batch `seq`."""

    seq: int
    hashes: list[bytes]


def adapter_origin(source: str, revision: str | None) -> str:
    """One text for where an adapter's files come from."""
    return source if revision is None else f"{source}@{revision}"


_encoder = msgspec.msgpack.Encoder()
_deployment_decoder = msgspec.msgpack.Decoder(DeploymentRecord)
_download_decoder = msgspec.msgpack.Decoder(DownloadRecord)
_record_decoder = msgspec.msgpack.Decoder(ReplicaRecord)
_batch_decoder = msgspec.msgpack.Decoder(KVEventBatch)
_snapshot_decoder = msgspec.msgpack.Decoder(KVSnapshot)


def encode(
    value: ReplicaRecord | DeploymentRecord | DownloadRecord | KVEventBatch | KVSnapshot,
) -> bytes:
    return _encoder.encode(value)


def decode_record(raw: bytes) -> ReplicaRecord:
    """Raises `msgspec.DecodeError` on anything that is not a record."""
    return _record_decoder.decode(raw)


def decode_deployment(raw: bytes) -> DeploymentRecord:
    """Raises `msgspec.DecodeError` on anything that is not a record of a deployment."""
    return _deployment_decoder.decode(raw)


def decode_download(raw: bytes) -> DownloadRecord:
    """Raises `msgspec.DecodeError` on anything that is not a record of a download."""
    return _download_decoder.decode(raw)


def decode_batch(raw: bytes) -> KVEventBatch:
    return _batch_decoder.decode(raw)


def decode_snapshot(raw: bytes) -> KVSnapshot:
    return _snapshot_decoder.decode(raw)
