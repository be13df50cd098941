-- Prolongs a lease that is still held. KEYS: head, lease. ARGV: owner, fence, time to live in ms.
if redis.call('GET', KEYS[2]) ~= ARGV[1] or redis.call('HGET', KEYS[1], 'fence') ~= ARGV[2] then
  return 'LOST'
end
redis.call('PEXPIRE', KEYS[2], ARGV[3])
return 'OK'
