"""What replicas write to Redis comes back as it was."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo_protocol.records import (
    AdapterError,
    AdapterSource,
    BlocksRemoved,
    BlocksStored,
    CacheCleared,
    DeploymentRecord,
    KVEvent,
    KVEventBatch,
    KVSnapshot,
    ReplicaRecord,
    decode_batch,
    decode_deployment,
    decode_record,
    decode_snapshot,
    encode,
)

HASHES = st.lists(st.binary(min_size=16, max_size=16), max_size=5)
EVENTS: st.SearchStrategy[KVEvent] = st.one_of(
    st.builds(BlocksStored, parent=st.none() | st.binary(min_size=16, max_size=16), hashes=HASHES),
    st.builds(BlocksRemoved, hashes=HASHES),
    st.builds(CacheCleared),
)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=10)
COUNT = st.integers(0, 2**63 - 1)
RATE = st.floats(0, 1e9)


@given(
    st.builds(
        ReplicaRecord,
        replica_id=TEXT,
        incarnation=TEXT,
        url=TEXT,
        model=TEXT,
        cache_model=TEXT,
        block_size=COUNT,
        num_blocks=COUNT,
        max_model_len=COUNT,
        served_names=st.lists(TEXT, max_size=3),
        adapters=st.lists(TEXT, max_size=3),
        running=COUNT,
        waiting=COUNT,
        waiting_tokens=COUNT,
        kv_usage=st.floats(0, 1),
        prefill_tokens_per_s=RATE,
        decode_tokens_per_s=RATE,
        draining=st.booleans(),
        ready=st.booleans(),
        tokenizer_id=TEXT,
        adapter_sources=st.dictionaries(TEXT, TEXT, max_size=2),
        adapter_errors=st.dictionaries(
            TEXT, st.builds(AdapterError, origin=TEXT, message=TEXT), max_size=2
        ),
    )
)
def test_record_comes_back(record: ReplicaRecord) -> None:
    assert decode_record(encode(record)) == record


@given(
    st.builds(
        DeploymentRecord,
        namespace=TEXT,
        deployment=TEXT,
        served_names=st.lists(TEXT, max_size=3),
        policy=TEXT,
        created_at=st.floats(0, 2**40),
        adapters=st.lists(
            st.builds(AdapterSource, name=TEXT, source=TEXT, revision=st.none() | TEXT), max_size=2
        ),
    )
)
def test_deployment_comes_back(record: DeploymentRecord) -> None:
    assert decode_deployment(encode(record)) == record


@given(st.builds(KVEventBatch, seq=COUNT, events=st.lists(EVENTS, max_size=5)))
def test_batch_comes_back(batch: KVEventBatch) -> None:
    assert decode_batch(encode(batch)) == batch


@given(st.builds(KVSnapshot, seq=COUNT, hashes=HASHES))
def test_snapshot_comes_back(snapshot: KVSnapshot) -> None:
    assert decode_snapshot(encode(snapshot)) == snapshot


def test_record_of_a_newer_release_can_be_read() -> None:
    """A cluster is upgraded one replica at a time: fields may be added, not removed."""
    record = ReplicaRecord("r", "i", "http://h", "m", "m@1", 16, 8, 128)
    newer = msgspec.to_builtins(record) | {"colour": "blue"}

    assert decode_record(msgspec.msgpack.encode(newer)) == record


@pytest.mark.parametrize("raw", [b"", b"\xc1", b"\x80", msgspec.msgpack.encode({"replica_id": 3})])
def test_what_is_no_record_is_refused(raw: bytes) -> None:
    for decode in (decode_record, decode_deployment):
        with pytest.raises(msgspec.DecodeError):
            decode(raw)
