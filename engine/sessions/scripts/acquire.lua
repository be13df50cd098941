-- Takes a session's lease. KEYS: head, lease. ARGV: owner, time to live in ms.
-- Returns {'OK', fence}, {'BUSY', ms left} or {'GONE', 0}. The holder itself may take it again.
local head, lease = KEYS[1], KEYS[2]
if redis.call('EXISTS', head) == 0 then
  return {'GONE', 0}
end
local holder = redis.call('GET', lease)
if holder and holder ~= ARGV[1] then
  return {'BUSY', redis.call('PTTL', lease)}
end
redis.call('SET', lease, ARGV[1], 'PX', ARGV[2])
return {'OK', redis.call('HINCRBY', head, 'fence', 1)}
