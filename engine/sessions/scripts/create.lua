-- Makes a session. KEYS: head. ARGV: nonce, then the head's fields and values.
-- The nonce tells a repeat of the same call, whose reply was lost, from an id that is taken.
if redis.call('EXISTS', KEYS[1]) == 1 then
  return redis.call('HGET', KEYS[1], 'nonce') == ARGV[1] and 'OK' or 'TAKEN'
end
redis.call('HSET', KEYS[1], 'nonce', ARGV[1], 'fence', '0', 'num_consolidated_turns', '0', unpack(ARGV, 2))
return 'OK'
