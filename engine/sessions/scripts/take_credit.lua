-- Takes credit from buckets that fill again with time; where one has none left it takes nothing, and says for how many
-- milliseconds that will be so. KEYS: the buckets, and before them, where ARGV 3 says so, a key that must exist.
-- ARGV: 1 '1' where credit is taken even if there is none left, 2 ms in which an empty bucket fills, 3 number of keys
-- before the buckets (0 or 1), then for each bucket what it holds when full and what is taken.
local clock = redis.call('TIME')
local now_ms = clock[1] * 1000 + math.floor(clock[2] / 1000)
local fill_ms, first = tonumber(ARGV[2]), tonumber(ARGV[3])
if first == 1 and redis.call('EXISTS', KEYS[1]) == 0 then
  return 0
end
local levels, wait_ms = {}, 0
for i = 1, #KEYS - first do
  local full = tonumber(ARGV[2 * i + 2])
  local stored = redis.call('HMGET', KEYS[i + first], 'level', 'at_ms')
  local level = full
  if stored[1] then
    -- A clock that was set back gives nothing and takes nothing.
    local passed_ms = math.max(0, now_ms - tonumber(stored[2]))
    level = math.min(full, tonumber(stored[1]) + passed_ms * full / fill_ms)
  end
  levels[i] = level
  if level < 1 then
    wait_ms = math.max(wait_ms, math.ceil((1 - level) * fill_ms / full))
  end
end
if wait_ms > 0 and ARGV[1] ~= '1' then
  return wait_ms
end
for i = 1, #KEYS - first do
  local full = tonumber(ARGV[2 * i + 2])
  local level = math.min(full, levels[i] - tonumber(ARGV[2 * i + 3]))
  redis.call('HSET', KEYS[i + first], 'level', string.format('%.6f', level), 'at_ms', now_ms)
  redis.call('PEXPIRE', KEYS[i + first], math.ceil((full - level) * fill_ms / full) + 1000)
end
return 0
