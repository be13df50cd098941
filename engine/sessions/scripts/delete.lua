-- Removes everything that belongs to a session.
-- KEYS: the fixed keys (head, lease, versions, turns, turn_order, idempotency, idempotency_expiry, staged,
-- history), the session's credit, then every chunk the caller saw. ARGV: the version the caller saw, then the marks it saw staged.
-- Says AGAIN where more has been written since the caller looked: its chunks would be left behind.
local head, staged = KEYS[1], KEYS[8]
local version = redis.call('HGET', head, 'version')
if not version then
  return 'GONE'
end
if version ~= ARGV[1] or redis.call('HLEN', staged) > #ARGV - 1 then
  return 'AGAIN'
end
local seen = {}
for i = 2, #ARGV do
  seen[ARGV[i]] = true
end
for _, mark in ipairs(redis.call('HKEYS', staged)) do
  if not seen[mark] then
    return 'AGAIN'
  end
end
for _, key in ipairs(KEYS) do
  redis.call('UNLINK', key)
end
return 'OK'
