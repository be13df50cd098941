-- Changes fields of a session that exists. KEYS: head. ARGV: fields and values.
if redis.call('EXISTS', KEYS[1]) == 0 then
  return 'GONE'
end
redis.call('HSET', KEYS[1], unpack(ARGV))
return 'OK'
