-- Begins a consolidation of a tenant, unless one runs or waits. KEYS: running, consolidations, consolidation_order.
-- ARGV: its id, its JSON, what was asked (JSON), most consolidations remembered.
-- Returns the id of the one that runs now.
local running = redis.call('HGET', KEYS[1], 'id')
if running then
  return running
end
local clock = redis.call('TIME')
redis.call('HSET', KEYS[1], 'id', ARGV[1], 'asked', ARGV[3])
redis.call('HSET', KEYS[2], ARGV[1], ARGV[2])
redis.call('ZADD', KEYS[3], clock[1] * 1000 + math.floor(clock[2] / 1000), ARGV[1])
for _, old in ipairs(redis.call('ZRANGE', KEYS[3], 0, -1 - tonumber(ARGV[4]))) do
  redis.call('ZREM', KEYS[3], old)
  redis.call('HDEL', KEYS[2], old)
end
return ARGV[1]
