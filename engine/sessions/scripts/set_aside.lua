-- Sets sessions aside that spoiled a candidate, and lets others out. KEYS: quarantine, forgotten.
-- ARGV: id of the consolidation, JSON pairs of a session's hash and its record, then hashes of those to let out.
-- Returns the records of those that were set aside. What a lost reply makes come again changes nothing.
local kept = {}
for i = 3, #ARGV do
  redis.call('HDEL', KEYS[1], ARGV[i])
end
for _, pair in ipairs(cjson.decode(ARGV[2])) do
  local name, record = pair[1], pair[2]
  if not redis.call('ZSCORE', KEYS[2], name) then
    local known = redis.call('HGET', KEYS[1], name)
    if known then
      local before = cjson.decode(known)
      record.times = before.times + (before.consolidation_id == ARGV[1] and 0 or 1)
    end
    kept[#kept + 1] = cjson.encode(record)
    redis.call('HSET', KEYS[1], name, kept[#kept])
  end
end
return kept
