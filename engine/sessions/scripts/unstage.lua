-- Removes a memory that was laid down, unless it turns out to have been committed: then it is the session's.
-- KEYS: versions, staged, then the memory's chunks. ARGV: its mark.
for _, record in ipairs(redis.call('HVALS', KEYS[1])) do
  if cjson.decode(record).mark == ARGV[1] then
    return 'COMMITTED'
  end
end
redis.call('HDEL', KEYS[2], ARGV[1])
for i = 3, #KEYS do
  redis.call('UNLINK', KEYS[i])
end
return 'OK'
