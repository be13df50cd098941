-- Ends a consolidation that publishes nothing. KEYS: running, consolidations. ARGV: its id, its JSON.
if redis.call('HGET', KEYS[1], 'id') ~= ARGV[1] then
  return 'ENDED'
end
redis.call('HSET', KEYS[2], ARGV[1], ARGV[2])
redis.call('DEL', KEYS[1])
return 'OK'
