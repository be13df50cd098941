-- Keeps a claim from going stale. KEYS: claimed, tokens. ARGV: session, token, time to live in ms.
if redis.call('HGET', KEYS[2], ARGV[1]) ~= ARGV[2] then
  return 'LOST'
end
local clock = redis.call('TIME')
local now_ms = clock[1] * 1000 + math.floor(clock[2] / 1000)
redis.call('ZADD', KEYS[1], now_ms + tonumber(ARGV[3]), ARGV[1])
return 'OK'
