#!lua flags=allow-oom
-- Deletes a partition page by page, and lets nobody in meanwhile.
--
-- The first call puts a sentinel in the place of the checkpoint. No owner expects it, so every apply is fenced and
-- nobody can open the partition until the last call has deleted checkpoint, due, out, risk, parts and hours together.
-- Whoever finds the sentinel gone (another reset has finished, perhaps somebody has begun anew) stops. Memory may be full:
-- that may be why one resets.
--
-- KEYS   1 checkpoint   2 due   3 out   4 risk   5 parts   6.. records of this page, at the end hours
-- ARGV   1 the sentinel   2 'begin', 'page' or 'end'   3.. customers of this page
-- Reply  {} when it was done; {checkpoint found, '' = none} when the sentinel was gone

local checkpoint, due, out, risk, parts = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local sentinel, phase = ARGV[1], ARGV[2]
if phase == 'begin' then
  redis.call('SET', checkpoint, sentinel)
  return {}
end
local found = redis.call('GET', checkpoint) or ''
if found ~= sentinel then
  return {found}
end
if phase == 'page' then
  redis.call('UNLINK', unpack(KEYS, 6))
  redis.call('ZREM', due, unpack(ARGV, 3))
  redis.call('ZREM', risk, unpack(ARGV, 3))
else
  redis.call('UNLINK', due, out, risk, parts, checkpoint, unpack(KEYS, 6))
end
return {}
