-- Remembers how far sessions told nothing. KEYS: passed, forgotten.
-- ARGV: the generation to which it was nothing, then hashes of sessions and the number of their turns.
if redis.call('HGET', KEYS[1], 'generation') ~= ARGV[1] then
  redis.call('DEL', KEYS[1])
end
redis.call('HSET', KEYS[1], 'generation', ARGV[1])
for i = 2, #ARGV, 2 do
  -- A session that was deleted meanwhile leaves nothing behind.
  if not redis.call('ZSCORE', KEYS[2], ARGV[i]) then
    redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1])
  end
end
return 'OK'
