-- Announces the chunks of a memory before they are written, so that a later commit or delete can find them.
-- KEYS: head, lease, staged. ARGV: owner, fence, mark, number of chunks, time to live in ms.
if redis.call('GET', KEYS[2]) ~= ARGV[1] or redis.call('HGET', KEYS[1], 'fence') ~= ARGV[2] then
  return 'LOST'
end
redis.call('HSET', KEYS[3], ARGV[3], ARGV[4])
redis.call('PEXPIRE', KEYS[3], ARGV[5])
return 'OK'
