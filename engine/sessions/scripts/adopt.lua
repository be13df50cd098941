-- Makes a session that has a past: memory and transcript, laid down before, become its own in one step.
-- KEYS  1 head, 2 versions, 3 turns, 4 turn_order, 5 history, 6 to 8 the last three as they arrived, then the
--       memory's chunks.
-- ARGV  1 nonce, 2 version, 3 its JSON ('' where there is no memory), 4 number of turns, then the head's fields and
--       values.
-- The nonce tells a repeat of the same call, whose reply was lost, from an id that is taken.
if redis.call('EXISTS', KEYS[1]) == 1 then
  return redis.call('HGET', KEYS[1], 'nonce') == ARGV[1] and 'OK' or 'TAKEN'
end
local num_turns = tonumber(ARGV[4])
if redis.call('HLEN', KEYS[6]) ~= num_turns or redis.call('ZCARD', KEYS[7]) ~= num_turns then
  return 'MISSING'
end
for i = 9, #KEYS do
  if redis.call('EXISTS', KEYS[i]) == 0 then
    return 'MISSING'
  end
end

-- The head first: a store that is full or read-only refuses this write, and with it all the others.
redis.call('HSET', KEYS[1], 'nonce', ARGV[1], 'fence', '0', unpack(ARGV, 5))
if ARGV[3] ~= '' then
  redis.call('HSET', KEYS[2], ARGV[2], ARGV[3])
end
for i = 9, #KEYS do
  redis.call('PERSIST', KEYS[i])
end
if num_turns > 0 then
  for i = 3, 5 do
    if redis.call('EXISTS', KEYS[i + 3]) == 1 then
      redis.call('RENAME', KEYS[i + 3], KEYS[i])
      redis.call('PERSIST', KEYS[i])
    end
  end
end
return 'OK'
