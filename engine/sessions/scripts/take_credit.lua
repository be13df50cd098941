-- Takes credit from buckets that fill again with time; where one has none left it takes nothing, and says for how many
-- milliseconds that will be so. KEYS: the buckets.
-- ARGV: 1 '1' where credit is taken even if there is none left, then for each bucket what it holds when full, which is
-- also what it gains in a minute, and what is taken.
local clock = redis.call('TIME')
local now_ms = clock[1] * 1000 + math.floor(clock[2] / 1000)
local levels, wait_ms = {}, 0
for i, key in ipairs(KEYS) do
  local full = tonumber(ARGV[2 * i])
  local stored = redis.call('HMGET', key, 'level', 'at_ms')
  local level = full
  if stored[1] then
    -- A clock that was set back gives nothing and takes nothing.
    local passed_ms = math.max(0, now_ms - tonumber(stored[2]))
    level = math.min(full, tonumber(stored[1]) + passed_ms * full / 60000)
  end
  levels[i] = level
  if level < 1 then
    wait_ms = math.max(wait_ms, math.ceil((1 - level) * 60000 / full))
  end
end
if wait_ms > 0 and ARGV[1] ~= '1' then
  return wait_ms
end
for i, key in ipairs(KEYS) do
  local full, level = tonumber(ARGV[2 * i]), levels[i] - tonumber(ARGV[2 * i + 1])
  redis.call('HSET', key, 'level', string.format('%.6f', level), 'at_ms', now_ms)
  redis.call('PEXPIRE', key, math.ceil((full - level) * 60000 / full) + 1000)
end
return 0
