-- Gives a lease back, if it is still this holder's. KEYS: head, lease. ARGV: owner, fence.
if redis.call('GET', KEYS[2]) == ARGV[1] and redis.call('HGET', KEYS[1], 'fence') == ARGV[2] then
  redis.call('DEL', KEYS[2])
end
return 'OK'
