-- Puts a session in line for the worker. KEYS: due. ARGV: session, delay in ms.
-- A later call moves the time, but never away from a session that is due already.
local clock = redis.call('TIME')
local now_ms = clock[1] * 1000 + math.floor(clock[2] / 1000)
local due_ms = redis.call('ZSCORE', KEYS[1], ARGV[1])
if not due_ms or tonumber(due_ms) > now_ms then
  redis.call('ZADD', KEYS[1], now_ms + tonumber(ARGV[2]), ARGV[1])
end
return 'OK'
