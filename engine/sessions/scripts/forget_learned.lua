-- Keeps a deleted session out of every later generation. KEYS: rehearsal, forgotten, running, quarantine, passed.
-- ARGV: its hash, ms to remember it. Only a consolidation that runs can have seen it: without one, nothing is remembered.
local clock = redis.call('TIME')
local now_ms = clock[1] * 1000 + math.floor(clock[2] / 1000)
if redis.call('EXISTS', KEYS[3]) == 1 then
  redis.call('ZADD', KEYS[2], now_ms, ARGV[1])
end
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', now_ms - tonumber(ARGV[2]))
for _, field in ipairs(redis.call('HKEYS', KEYS[1])) do
  if string.sub(field, -#ARGV[1]) == ARGV[1] then
    redis.call('HDEL', KEYS[1], field)
  end
end
redis.call('HDEL', KEYS[4], ARGV[1])
redis.call('HDEL', KEYS[5], ARGV[1])
return 'OK'
