"""The rules of the journal as Redis runs them, each call at once and alone.

KEYS of every script: the stream's record, its events, all streams, their sizes
(`octavo_protocol/keys.py`). The record's fields:

    fingerprint, owner, head         as in `Journal`
    until, wanted                    end of the lease, last claim or reading: ms of Redis' clock
    last, size                       number of the last event; bytes of all events
    state                            "", "ended" or "lost"

`memory_journal.py` says the same in plain words; one suite of tests holds for both.
"""

_NOW = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
"""

# ARGV: id, token, fingerprint, lease ms, TTL ms, most bytes of all, must exist
CLAIM = (
    _NOW
    + """
local id, token = ARGV[1], ARGV[2]
for _, old in ipairs(redis.call('ZRANGEBYSCORE', KEYS[3], '-inf', now, 'LIMIT', 0, 32)) do
  local size = redis.call('HGET', KEYS[4], old) or 0
  redis.call('HINCRBY', KEYS[4], 'total', -size)
  redis.call('HDEL', KEYS[4], old)
  redis.call('ZREM', KEYS[3], old)
end
local r = redis.call('HMGET', KEYS[1], 'fingerprint', 'owner', 'until', 'last', 'state', 'traced')
if not r[1] then
  if ARGV[7] == '1' then return {'missing', 0} end
  local total = tonumber(redis.call('HGET', KEYS[4], 'total') or 0)
  if total >= tonumber(ARGV[6]) then return {'full', 0} end
  redis.call('HSET', KEYS[1], 'fingerprint', ARGV[3], 'owner', token, 'until', now + ARGV[4],
    'wanted', now, 'last', 0, 'size', 0, 'state', '', 'traced', '0', 'head', '')
  redis.call('PEXPIRE', KEYS[1], ARGV[5])
  redis.call('ZADD', KEYS[3], now + ARGV[5], id)
  return {'new', 0}
end
local last = tonumber(r[4])
if r[1] ~= ARGV[3] then return {'other request', last} end
redis.call('HSET', KEYS[1], 'wanted', now)
if r[5] ~= '' then return {r[5], last} end
if tonumber(r[3]) > now and r[2] ~= token then return {'running', last} end
if last > 0 and r[6] ~= '1' then return {'lost', last} end
redis.call('HSET', KEYS[1], 'owner', token, 'until', now + ARGV[4])
return {last == 0 and 'new' or 'taken over', last}
"""
)

# All appends of a round trip are one call, in their order. KEYS: the four of each.
# ARGV: lease ms, TTL ms, most bytes of a stream, most bytes of all; then of each append: id, token,
# number of the last event, batch ('': none), its bytes, head ('': as before), traced, is the end
# Returns one text, which is quickly read: what became of each, and the ms since it was wanted.
APPEND = (
    _NOW
    + """
local lease, ttl, most, most_of_all = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])

local function append(keys, id, token, last, batch, added, head, traced, is_end)
  local r = redis.call('HMGET', keys[1], 'owner', 'wanted', 'last', 'size')
  if not r[1] then return 'missing 0' end
  if r[1] ~= token then return 'fenced 0' end
  local is_new = batch ~= '' and tonumber(last) > tonumber(r[3])
  if is_new then
    local total = redis.call('HINCRBY', keys[4], 'total', added)
    if r[4] + added > most or total > most_of_all then
      redis.call('HINCRBY', keys[4], 'total', -(r[4] + added))
      redis.call('HDEL', keys[4], id)
      redis.call('DEL', keys[2])
      redis.call('HSET', keys[1], 'state', 'lost', 'owner', '', 'until', 0)
      redis.call('PUBLISH', keys[1], '')
      return 'full 0'
    end
    redis.call('XADD', keys[2], last .. '-0', 'b', batch)
    redis.call('HINCRBY', keys[4], id, added)
    redis.call('HSET', keys[1], 'last', last, 'size', r[4] + added)
    if head ~= '' then redis.call('HSET', keys[1], 'head', head, 'traced', traced) end
  end
  redis.call('HSET', keys[1], 'until', now + lease)
  if is_end == '1' then redis.call('HSET', keys[1], 'state', 'ended') end
  redis.call('ZADD', keys[3], now + ttl, id)
  for _, key in ipairs(keys) do redis.call('PEXPIRE', key, ttl) end
  if is_new or is_end == '1' then redis.call('PUBLISH', keys[1], '') end
  return 'yes ' .. (now - r[2])
end

local kept = {}
for i = 0, #KEYS / 4 - 1 do
  local k, a = 4 * i, 4 + 8 * i
  kept[i + 1] = append({KEYS[k + 1], KEYS[k + 2], KEYS[k + 3], KEYS[k + 4]}, ARGV[a + 1],
    ARGV[a + 2], ARGV[a + 3], ARGV[a + 4], tonumber(ARGV[a + 5]), ARGV[a + 6], ARGV[a + 7],
    ARGV[a + 8])
end
return table.concat(kept, ',')
"""
)

# ARGV: number of the last event that is known, most batches
READ = (
    _NOW
    + """
local r = redis.call('HMGET', KEYS[1], 'state', 'until', 'head')
if not r[1] then return {'', 0, '', {}} end
redis.call('HSET', KEYS[1], 'wanted', now)
local batches = {}
local entries = redis.call('XRANGE', KEYS[2], ARGV[1] .. '-1', '+', 'COUNT', ARGV[2])
for i, entry in ipairs(entries) do batches[i] = entry[2][2] end
return {r[1], tonumber(r[2]) > now and 1 or 0, r[3], batches}
"""
)

# ARGV: token
RELEASE = """
if redis.call('HGET', KEYS[1], 'owner') == ARGV[1] then
  redis.call('HSET', KEYS[1], 'owner', '', 'until', 0)
  redis.call('PUBLISH', KEYS[1], '')
end
"""

# ARGV: token, id
DROP = """
if redis.call('HGET', KEYS[1], 'owner') == ARGV[1] then
  local size = redis.call('HGET', KEYS[4], ARGV[2]) or 0
  redis.call('HINCRBY', KEYS[4], 'total', -size)
  redis.call('HDEL', KEYS[4], ARGV[2])
  redis.call('ZREM', KEYS[3], ARGV[2])
  redis.call('DEL', KEYS[1], KEYS[2])
  redis.call('PUBLISH', KEYS[1], '')
end
"""
