#!lua
-- A partition moves from one checkpoint to the next, or not at all.
--
-- Redis runs a script alone, so nobody sees half of it. It has no rollback either, so nothing may fail after
-- the first write. Therefore: all checks first, writes last, and every write is one that cannot fail by then.
--   * The bare "#!lua" above (Redis 7 and later) declares no flags. A script without flags is refused before its first
--     line when memory is full, the server is a replica, or the disk refuses snapshots.
--   * Wrong types of the fixed keys and missing ACL rights are found below, before anything is written.
--   * The caller has checked counts and numbers; record keys are overwritten whatever they hold.
--
-- KEYS   1 checkpoint   2 due   3 out   4 risk   5 parts, where customers are composite
--        then records to write, then records to forget; then hours, if any ended: named only when it is written, since a
--        key that is nowhere yet has a slot on the move wait
-- ARGV   1 expected checkpoint ('' = none yet)   2 new checkpoint   3 where the customer begins in a record key
--        4 records to write   5 outbox entries   6 acknowledged   7 at risk   8 at most that are listed
--        9 customers are composite: 1, else 0   10 counts of the hours that have ended ('' = as they are)
--        then a due time a record, the records, id and bytes of each outbox entry, the acknowledged ids,
--        p and name of who is at risk: of the customers written, who is not leaves the list
-- Reply  {} when it was done; {checkpoint found, '' = none} when the fence held

local CHUNK = 2000 -- arguments a call: even, for pairs, and well below the 8,000 that Lua can unpack
local HEADER = 10 -- arguments of one meaning each
local TURNED_AWAY = '\255' -- a member of `risk` that is nobody's name, being no UTF-8: the highest p that found no room
local checkpoint, due, out, risk = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local expected, moved, name_at = ARGV[1], ARGV[2], tonumber(ARGV[3])
local written, entries, acked = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])
local risky, risky_max, composite = tonumber(ARGV[7]), tonumber(ARGV[8]), tonumber(ARGV[9])
local FIXED = 4 + composite -- keys of one meaning each
local parts = composite == 1 and KEYS[5]
local ended = ARGV[10]
local hours = ended ~= '' and KEYS[#KEYS]
local call = redis.call

local found = call('GET', checkpoint) or ''
if found ~= expected then
  return {found}
end

local kinds = {[due] = 'zset', [out] = 'hash', [risk] = 'zset'}
if parts then kinds[parts] = 'zset' end
for key, kind in pairs(kinds) do
  local stored = call('TYPE', key).ok
  if stored ~= 'none' and stored ~= kind then
    return redis.error_reply('FOREIGN ' .. key .. ' holds a ' .. stored .. ', not a ' .. kind)
  end
end
local writes = {{'SET', checkpoint, ''}, {'MSET', checkpoint, ''}, {'UNLINK', checkpoint}, {'ZADD', due, '0', ''},
                {'ZREM', due, ''}, {'HSET', out, '', ''}, {'HDEL', out, ''}, {'ZADD', risk, '0', ''},
                {'ZREM', risk, ''}, {'ZPOPMIN', risk}}
if parts then
  writes[#writes + 1], writes[#writes + 2] = {'ZADD', parts, '0', ''}, {'ZREM', parts, ''}
end
for _, write in ipairs(writes) do
  if not redis.acl_check_cmd(unpack(write)) then
    return redis.error_reply('NOPERM this user may not run ' .. write[1] .. ' on ' .. write[2])
  end
end

-- From here on nothing fails.
local records, times, forgotten, names, present = {}, {}, {}, {}, {}
for i = 1, written do
  local key = KEYS[FIXED + i]
  local name = string.sub(key, name_at)
  records[2 * i - 1], records[2 * i] = key, ARGV[HEADER + written + i]
  times[2 * i - 1], times[2 * i] = ARGV[HEADER + i], name
  present[i] = name
end
for i = FIXED + 1 + written, #KEYS - (hours and 1 or 0) do
  forgotten[#forgotten + 1] = KEYS[i]
  names[#names + 1] = string.sub(KEYS[i], name_at)
end

local function each(command, key, list, first, last)
  for i = first, last, CHUNK do
    local till = math.min(i + CHUNK - 1, last)
    if key then call(command, key, unpack(list, i, till)) else call(command, unpack(list, i, till)) end
  end
end
local entries_at = HEADER + 1 + 2 * written
local acked_at = entries_at + 2 * entries
each('MSET', nil, records, 1, #records)
each('ZADD', due, times, 1, #times)
each('UNLINK', nil, forgotten, 1, #forgotten)
each('ZREM', due, names, 1, #names)
if parts then -- put in first, then taken out: see below
  local zeros = {}
  for i, name in ipairs(present) do
    zeros[2 * i - 1], zeros[2 * i] = '0', name
  end
  each('ZADD', parts, zeros, 1, #zeros)
  each('ZREM', parts, names, 1, #names)
end
each('HSET', out, ARGV, entries_at, acked_at - 1)
each('HDEL', out, ARGV, acked_at, acked_at + acked - 1)

-- Who is at risk: everybody with a p from the turned-away one on is listed, and nobody below it. Put in first, then taken
-- out, and not looked at once it may be empty: while a slot of a Cluster is on the move, a key that is gone counts as being
-- elsewhere, and the script would end here, half done.
if risky > 0 or call('EXISTS', risk) == 1 then
  local floor, listed, stays, leaving = call('ZSCORE', risk, TURNED_AWAY), {}, {}, {unpack(names)}
  for i = acked_at + acked, acked_at + acked + 2 * risky - 1, 2 do
    if not floor or tonumber(ARGV[i]) >= tonumber(floor) then
      listed[#listed + 1], listed[#listed + 2] = ARGV[i], ARGV[i + 1]
      stays[ARGV[i + 1]] = true
    end
  end
  for _, name in ipairs(present) do
    if not stays[name] then leaving[#leaving + 1] = name end
  end
  each('ZADD', risk, listed, 1, #listed)
  local many = call('ZCARD', risk) - (floor and 1 or 0)
  for i = 1, #leaving, CHUNK do
    if many > 0 or floor then
      many = many - call('ZREM', risk, unpack(leaving, i, math.min(i + CHUNK - 1, #leaving)))
    end
  end
  if many > risky_max then
    call('ZREM', risk, TURNED_AWAY)
    local gone = call('ZPOPMIN', risk, many - risky_max)
    call('ZADD', risk, gone[#gone], TURNED_AWAY)
  elseif floor and many <= risky_max / 2 then
    call('ZREM', risk, TURNED_AWAY)
  end
end
if hours then
  call('SET', hours, ended)
end
call('SET', checkpoint, moved)
return {}
