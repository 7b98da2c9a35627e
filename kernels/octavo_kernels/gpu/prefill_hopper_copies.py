"""The copying half of `prefill_hopper`: which tokens a program has, and the tiles of their keys and
values, gathered through the block table into a ring in shared memory.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared, mbarrier, tma


@gluon.jit
def find_sequence(tile, starts_ptr, context_lens_ptr, num_sequences, TOKENS: gl.constexpr):
    """The sequence that owns a tile: its index, first token, number of tokens and context, and the
    tile's place in it, which may be past its end. Sequence i begins at tile
    (starts[i] - starts[0]) // TOKENS + i. One pass: the loads do not wait for each other.
    """
    lanes: gl.constexpr = gl.BlockedLayout([4], [32], [4], [0])
    begin = gl.load(starts_ptr)
    index, start, stop, context = 0, 0, 0, 0
    for at in range(0, num_sequences, 128):
        candidates = at + gl.arange(0, 128, lanes)
        is_there = candidates < num_sequences
        starts = gl.load(starts_ptr + candidates, mask=is_there, other=0)
        stops = gl.load(starts_ptr + 1 + candidates, mask=is_there, other=0)
        contexts = gl.load(context_lens_ptr + candidates, mask=is_there, other=0)
        owns = (starts - begin) // TOKENS + candidates <= tile
        owns &= tile <= (stops - begin) // TOKENS + candidates
        owner = (is_there & owns).to(gl.int32)
        index += gl.sum(candidates * owner, 0)
        start += gl.sum(starts * owner, 0)
        stop += gl.sum(stops * owner, 0)
        context += gl.sum(contexts * owner, 0)
    return index, start, stop - start, context, tile - ((start - begin) // TOKENS + index)


@gluon.jit
def produce(
    key_desc,
    value_desc,
    value_ptr,
    table_ptr,
    blocks,
    ready,
    free,
    kv_head,
    num_kv_heads,
    num_rows,
    num_tiles,
    end,
    BLOCK_SIZE: gl.constexpr,
    BLOCK_N: gl.constexpr,
    HEAD_DIM: gl.constexpr,
    SLOTS: gl.constexpr,
    COLUMNS: gl.constexpr,
):
    """Fills the ring with keys [0, end) and their values, in tiles of BLOCK_N, as slots come free.

    blocks: [SLOTS * HEAD_DIM / COLUMNS * BLOCK_N / BLOCK_SIZE, BLOCK_SIZE, COLUMNS]: a tile lies in
    parts of COLUMNS, the width of the swizzle, and a part block by block
    """
    BLOCKS: gl.constexpr = BLOCK_N // BLOCK_SIZE
    PARTS: gl.constexpr = HEAD_DIM // COLUMNS
    BLOCK_BYTES: gl.constexpr = BLOCK_SIZE * HEAD_DIM * 2
    tail = end % BLOCK_SIZE
    for tile in range(num_tiles):
        for operand in gl.static_range(2):
            step = 2 * tile + operand
            slot = step % SLOTS
            mbarrier.wait(free.index(slot), ((step // SLOTS) & 1) ^ 1)
            is_cut = (tile == num_tiles - 1) & (tail > 0)
            if operand == 1 and is_cut:
                cut = gl.load(table_ptr + end // BLOCK_SIZE) * num_kv_heads + kv_head
                first_target = slot * PARTS * BLOCKS + (end - tile * BLOCK_N) // BLOCK_SIZE
                _copy_cut_block(
                    value_ptr + cut.to(gl.int64) * (BLOCK_SIZE * HEAD_DIM), blocks, first_target,
                    tail, BLOCKS, PARTS, BLOCK_SIZE, HEAD_DIM, COLUMNS,
                )  # fmt: skip
                mbarrier.expect(ready.index(slot), (BLOCKS - 1) * BLOCK_BYTES)
            else:
                mbarrier.expect(ready.index(slot), BLOCKS * BLOCK_BYTES)
            for i in gl.static_range(BLOCKS):
                position = tile * BLOCK_N + i * BLOCK_SIZE
                is_inside = position < end
                block = gl.load(table_ptr + position // BLOCK_SIZE, mask=is_inside, other=0)
                row = (block * num_kv_heads + kv_head) * BLOCK_SIZE
                # Past the end of the tensor the copy fills with zeros.
                row = gl.where(is_inside, row, num_rows)
                is_whole = (operand == 0) | (position + BLOCK_SIZE <= end) | (position >= end)
                for part in gl.static_range(PARTS):
                    target = blocks.index((slot * PARTS + part) * BLOCKS + i)
                    coordinates = [row, part * COLUMNS]
                    if operand == 0:
                        tma.async_copy_global_to_shared(
                            key_desc, coordinates, ready.index(slot), target
                        )
                    else:
                        tma.async_copy_global_to_shared(
                            value_desc, coordinates, ready.index(slot), target, pred=is_whole
                        )


@gluon.jit
def _copy_cut_block(
    source_ptr,
    blocks,
    first_target,
    num_tokens,
    BLOCKS: gl.constexpr,
    PARTS: gl.constexpr,
    BLOCK_SIZE: gl.constexpr,
    HEAD_DIM: gl.constexpr,
    COLUMNS: gl.constexpr,
):
    """The first num_tokens values of a block, then zeros: its other slots may hold NaN, which a
    weight of zero would not silence.
    """
    lanes: gl.constexpr = gl.BlockedLayout([1, 8], [4, 8], [1, 1], [1, 0])
    tokens = gl.arange(0, BLOCK_SIZE, gl.SliceLayout(1, lanes))[:, None]
    columns = gl.arange(0, COLUMNS, gl.SliceLayout(0, lanes))[None, :]
    places = tokens * HEAD_DIM + columns
    for part in gl.static_range(PARTS):
        values = gl.load(
            source_ptr + places + part * COLUMNS, mask=places < num_tokens * HEAD_DIM, other=0.0
        )
        blocks.index(first_target + part * BLOCKS).store(values)
    fence_async_shared()
    gl.thread_barrier()
