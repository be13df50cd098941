-- Hands out the session that has been due longest. KEYS: due, claimed, tokens, attempts, dead.
-- ARGV: token, time to live of a claim in ms, most attempts, most dead sessions remembered.
-- Returns {session, attempt}, or an empty list where nothing is due. A session is with one worker at a time; a
-- claim that went stale puts its session back in line.
local due, claimed, tokens, attempts, dead = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local clock = redis.call('TIME')
local now_ms = clock[1] * 1000 + math.floor(clock[2] / 1000)

for _, session in ipairs(redis.call('ZRANGEBYSCORE', claimed, '-inf', now_ms, 'LIMIT', 0, 100)) do
  redis.call('ZADD', due, now_ms, session)
  redis.call('ZREM', claimed, session)
  redis.call('HDEL', tokens, session)
end
for _, session in ipairs(redis.call('ZRANGEBYSCORE', due, '-inf', now_ms, 'LIMIT', 0, 100)) do
  if not redis.call('ZSCORE', claimed, session) then
    redis.call('ZREM', due, session)
    local attempt = redis.call('HINCRBY', attempts, session, 1)
    if attempt <= tonumber(ARGV[3]) then
      redis.call('ZADD', claimed, now_ms + tonumber(ARGV[2]), session)
      redis.call('HSET', tokens, session, ARGV[1])
      return {session, attempt}
    end
    -- It breaks whoever works on it: out of the line until its next turn puts it back.
    redis.call('HDEL', attempts, session)
    redis.call('ZADD', dead, now_ms, session)
    redis.call('ZREMRANGEBYRANK', dead, 0, -1 - tonumber(ARGV[4]))
  end
end
return {}
