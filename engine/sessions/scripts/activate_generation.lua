-- Makes a generation the active one. KEYS: state, generations. ARGV: its number; 0 is the checkpoint alone.
if ARGV[1] ~= '0' and redis.call('HEXISTS', KEYS[2], ARGV[1]) == 0 then
  return 'UNKNOWN'
end
if (redis.call('HGET', KEYS[1], 'active') or '0') ~= ARGV[1] then
  redis.call('HSET', KEYS[1], 'active', ARGV[1])
  redis.call('HINCRBY', KEYS[1], 'switches', 1)
end
return 'OK'
