-- What an idempotency key was used for (JSON), or false: never used, or forgotten by the store's clock.
-- KEYS: idempotency, idempotency_expiry. ARGV: the key's digest.
local expiry_ms = redis.call('ZSCORE', KEYS[2], ARGV[1])
local clock = redis.call('TIME')
local now_ms = clock[1] * 1000 + math.floor(clock[2] / 1000)
if not expiry_ms or tonumber(expiry_ms) <= now_ms then
  return false
end
return redis.call('HGET', KEYS[1], ARGV[1])
