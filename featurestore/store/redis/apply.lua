#!lua
-- A partition moves from one checkpoint to the next, or not at all.
--
-- Redis runs a script alone, so nobody sees half of it. It has no rollback either, so nothing may fail after
-- the first write. Therefore: all checks first, writes last, and every write is one that cannot fail by then.
--   * The bare "#!lua" above (Redis 7 and later) declares no flags. A script without flags is refused before its first
--     line when memory is full, the server is a replica, or the disk refuses snapshots.
--   * Wrong types of the three fixed keys and missing ACL rights are found below, before anything is written.
--   * The caller has checked counts and numbers; record keys are overwritten whatever they hold.
--
-- KEYS   1 checkpoint   2 due   3 out   4.. records to write, then records to forget
-- ARGV   1 expected checkpoint ('' = none yet)   2 new checkpoint   3 where the customer begins in a record key
--        4 records to write   5 outbox entries   6 acknowledged
--        then a due time a record, the records, id and bytes of each outbox entry, the acknowledged ids
-- Reply  {} when it was done; {checkpoint found, '' = none} when the fence held

local CHUNK = 2000 -- arguments a call: even, for pairs, and well below the 8,000 that Lua can unpack
local checkpoint, due, out = KEYS[1], KEYS[2], KEYS[3]
local expected, moved, name_at = ARGV[1], ARGV[2], tonumber(ARGV[3])
local written, entries, acked = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])
local call = redis.call

local found = call('GET', checkpoint) or ''
if found ~= expected then
  return {found}
end

for key, kind in pairs({[due] = 'zset', [out] = 'hash'}) do
  local stored = call('TYPE', key).ok
  if stored ~= 'none' and stored ~= kind then
    return redis.error_reply('FOREIGN ' .. key .. ' holds a ' .. stored .. ', not a ' .. kind)
  end
end
for _, write in ipairs({{'SET', checkpoint, ''}, {'MSET', checkpoint, ''}, {'UNLINK', checkpoint}, {'ZADD', due, '0', ''},
                        {'ZREM', due, ''}, {'HSET', out, '', ''}, {'HDEL', out, ''}}) do
  if not redis.acl_check_cmd(unpack(write)) then
    return redis.error_reply('NOPERM this user may not run ' .. write[1] .. ' on ' .. write[2])
  end
end

-- From here on nothing fails.
local records, times, forgotten, names = {}, {}, {}, {}
for i = 1, written do
  local key = KEYS[3 + i]
  records[2 * i - 1], records[2 * i] = key, ARGV[6 + written + i]
  times[2 * i - 1], times[2 * i] = ARGV[6 + i], string.sub(key, name_at)
end
for i = 4 + written, #KEYS do
  forgotten[#forgotten + 1] = KEYS[i]
  names[#names + 1] = string.sub(KEYS[i], name_at)
end

local function each(command, key, list, first, last)
  for i = first, last, CHUNK do
    local till = math.min(i + CHUNK - 1, last)
    if key then call(command, key, unpack(list, i, till)) else call(command, unpack(list, i, till)) end
  end
end
local entries_at = 7 + 2 * written
local acked_at = entries_at + 2 * entries
each('MSET', nil, records, 1, #records)
each('ZADD', due, times, 1, #times)
each('UNLINK', nil, forgotten, 1, #forgotten)
each('ZREM', due, names, 1, #names)
each('HSET', out, ARGV, entries_at, acked_at - 1)
each('HDEL', out, ARGV, acked_at, acked_at + acked - 1)
call('SET', checkpoint, moved)
return {}
