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

# ARGV: id, token, number of the last event, batch ('': none), its bytes, head ('': as before),
# traced, is the end, lease ms, TTL ms, most bytes of a stream, most bytes of all
APPEND = (
    _NOW
    + """
local id = ARGV[1]
local r = redis.call('HMGET', KEYS[1], 'owner', 'wanted', 'last', 'size')
if not r[1] then return {'missing', 0} end
if r[1] ~= ARGV[2] then return {'fenced', 0} end
local added = tonumber(ARGV[5])
local is_new = ARGV[4] ~= '' and tonumber(ARGV[3]) > tonumber(r[3])
if is_new then
  local total = redis.call('HINCRBY', KEYS[4], 'total', added)
  if r[4] + added > tonumber(ARGV[11]) or total > tonumber(ARGV[12]) then
    redis.call('HINCRBY', KEYS[4], 'total', -(r[4] + added))
    redis.call('HDEL', KEYS[4], id)
    redis.call('DEL', KEYS[2])
    redis.call('HSET', KEYS[1], 'state', 'lost', 'owner', '', 'until', 0)
    redis.call('PUBLISH', KEYS[1], '')
    return {'full', 0}
  end
  redis.call('XADD', KEYS[2], ARGV[3] .. '-0', 'b', ARGV[4])
  redis.call('HINCRBY', KEYS[4], id, added)
  redis.call('HSET', KEYS[1], 'last', ARGV[3], 'size', r[4] + added)
  if ARGV[6] ~= '' then redis.call('HSET', KEYS[1], 'head', ARGV[6], 'traced', ARGV[7]) end
end
redis.call('HSET', KEYS[1], 'until', now + ARGV[9])
if ARGV[8] == '1' then redis.call('HSET', KEYS[1], 'state', 'ended') end
redis.call('ZADD', KEYS[3], now + ARGV[10], id)
for _, key in ipairs(KEYS) do redis.call('PEXPIRE', key, ARGV[10]) end
if is_new or ARGV[8] == '1' then redis.call('PUBLISH', KEYS[1], '') end
return {'yes', now - r[2]}
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
