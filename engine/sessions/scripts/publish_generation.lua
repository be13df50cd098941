-- Makes a generation, switches to it and ends its consolidation, in one step.
-- KEYS  1 state, 2 generations, 3 running, 4 consolidations, 5 rehearsal, 6 forgotten, then the new generation's chunks,
--       then chunks of generations that are no longer wanted.
-- ARGV  1 consolidation's id, 2 its JSON, 3 switches expected, 4 the new number, 5 its JSON, 6 number of its chunks,
--       7 number of sessions it learned from, 8 number of fields of rehearsal to set, 9 number of them to remove,
--       then those sessions, then those fields and values, then those fields, then numbers of unwanted generations.
local state, generations, running, consolidations = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local rehearsal, forgotten = KEYS[5], KEYS[6]
local num_chunks, num_sessions = tonumber(ARGV[6]), tonumber(ARGV[7])
local num_set, num_removed = tonumber(ARGV[8]), tonumber(ARGV[9])

-- Checks, before anything is written. What a lost reply makes come again has happened.
if redis.call('HGET', running, 'id') ~= ARGV[1] then
  return redis.call('HGET', consolidations, ARGV[1]) == ARGV[2] and 'OK' or 'ENDED'
end
if (redis.call('HGET', state, 'switches') or '0') ~= ARGV[3] then
  return 'MOVED'
end
if tonumber(redis.call('HGET', state, 'latest') or '0') + 1 ~= tonumber(ARGV[4]) then
  return 'MOVED'
end
for i = 10, 9 + num_sessions do
  if redis.call('ZSCORE', forgotten, ARGV[i]) then
    return 'FORGOTTEN'
  end
end
for i = 7, 6 + num_chunks do
  if redis.call('EXISTS', KEYS[i]) == 0 then
    return 'MISSING'
  end
end

redis.call('HSET', state, 'active', ARGV[4], 'latest', ARGV[4])
redis.call('HINCRBY', state, 'switches', 1)
redis.call('HSET', generations, ARGV[4], ARGV[5])
for i = 7, 6 + num_chunks do
  redis.call('PERSIST', KEYS[i])
end
local at = 10 + num_sessions
for i = at, at + 2 * num_set - 1, 2 do
  redis.call('HSET', rehearsal, ARGV[i], ARGV[i + 1])
end
at = at + 2 * num_set
for i = at, at + num_removed - 1 do
  redis.call('HDEL', rehearsal, ARGV[i])
end
for i = at + num_removed, #ARGV do
  redis.call('HDEL', generations, ARGV[i])
end
for i = 7 + num_chunks, #KEYS do
  redis.call('UNLINK', KEYS[i])
end
redis.call('HSET', consolidations, ARGV[1], ARGV[2])
redis.call('DEL', running)
return 'OK'
