-- Puts work in line unless it is there. KEYS: due. ARGV: name, delay in ms.
local clock = redis.call('TIME')
redis.call('ZADD', KEYS[1], 'NX', clock[1] * 1000 + math.floor(clock[2] / 1000) + tonumber(ARGV[2]), ARGV[1])
return 'OK'
