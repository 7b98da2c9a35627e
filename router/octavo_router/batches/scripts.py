"""The steps of a batch that must happen as one: Lua, which Redis runs whole or not at all."""

# A batch is made, once. KEYS: batch, batches of its owner, open batches.
# ARGV: id, creation time, rank, field, value, ...
CREATE = """
if redis.call('EXISTS', KEYS[1]) == 1 then return 0 end
for i = 4, #ARGV, 2 do redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1]) end
redis.call('ZADD', KEYS[2], ARGV[2], ARGV[1])
redis.call('ZADD', KEYS[3], ARGV[3], ARGV[1])
return 1
"""

# A validated batch gets its chunks, once. KEYS: batch, chunks. ARGV: now, group, total, chunk, ...
START = """
if redis.call('HGET', KEYS[1], 'status') ~= 'validating' then return 0 end
redis.call('DEL', KEYS[2])
redis.call('XGROUP', 'CREATE', KEYS[2], ARGV[2], '0', 'MKSTREAM')
for i = 4, #ARGV do redis.call('XADD', KEYS[2], '*', 'chunk', ARGV[i]) end
redis.call('HSET', KEYS[1], 'status', 'in_progress', 'in_progress_at', ARGV[1],
           'total', ARGV[3], 'num_chunks', #ARGV - 3)
return 1
"""

# The lease of a chunk goes on, where it is still this consumer's.
# KEYS: chunks. ARGV: group, entry, consumer
RENEW = """
local pending = redis.call('XPENDING', KEYS[1], ARGV[1], ARGV[2], ARGV[2], 1)
if #pending == 0 or pending[1][2] ~= ARGV[3] then return 0 end
redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[3], 0, ARGV[2], 'JUSTID')
return 1
"""

# Whether results still count: after the end nobody would clean up behind them.
_IS_OPEN = """
local function is_open(batch)
  local status = redis.call('HGET', batch, 'status')
  return status == 'in_progress' or status == 'finalizing' or status == 'cancelling'
end
"""

# The result of a line, if it has none yet, and what it adds to the batch's counts.
# KEYS: batch, done, results. ARGV: chunk, line, result, field, increment, ...
COMMIT = (
    _IS_OPEN
    + """
if not is_open(KEYS[1]) then return 0 end
if redis.call('HEXISTS', KEYS[2], ARGV[1]) == 1 then return 0 end
if redis.call('HSETNX', KEYS[3], ARGV[2], ARGV[3]) == 0 then return 0 end
for i = 4, #ARGV, 2 do redis.call('HINCRBY', KEYS[1], ARGV[i], ARGV[i + 1]) end
return 1
"""
)

# A chunk whose results are in the storage. KEYS: batch, done, results, chunks.
# ARGV: chunk, sizes, group, entry ("" where nobody holds a lease)
FINISH = (
    _IS_OPEN
    + """
if not is_open(KEYS[1]) then return 0 end
local is_new = redis.call('HSETNX', KEYS[2], ARGV[1], ARGV[2])
redis.call('DEL', KEYS[3])
if ARGV[4] ~= '' then
  redis.call('XACK', KEYS[4], ARGV[3], ARGV[4])
  redis.call('XDEL', KEYS[4], ARGV[4])
end
return is_new
"""
)

# A lock that only its holder renews or lets go. KEYS: lock. ARGV: holder, milliseconds (0: let go)
HOLD = """
local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[1] then return 0 end
if ARGV[2] == '0' then redis.call('DEL', KEYS[1])
else redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2]) end
return 1
"""
