-- Counts turns of a session as consolidated that taught nothing: no new version. KEYS: head, lease.
-- ARGV: owner, fence, turns counted so far, turns to count, what is left of the accumulated surprise.
if redis.call('GET', KEYS[2]) ~= ARGV[1] or redis.call('HGET', KEYS[1], 'fence') ~= ARGV[2] then
  return 'LOST'
end
local counted = redis.call('HGET', KEYS[1], 'num_consolidated_turns')
if counted == ARGV[4] then
  return 'OK'
end
if counted ~= ARGV[3] or tonumber(redis.call('HGET', KEYS[1], 'num_turns')) < tonumber(ARGV[4]) then
  return 'MOVED'
end
redis.call('HSET', KEYS[1], 'num_consolidated_turns', ARGV[4], 'surprise', ARGV[5])
return 'OK'
