-- Moves a session to its next version: memory, transcript, idempotency record and head in one step.
--
-- KEYS  1 head, 2 lease, 3 versions, 4 turns, 5 turn_order, 6 idempotency, 7 idempotency_expiry, 8 staged,
--       9 history, then the new memory's chunks, then chunks that are no longer wanted.
-- ARGV  1 owner, 2 fence, 3 expected version, 4 new version, 5 commit id, 6 JSON of the new version,
--       7 number of its chunks, 8 turn id ('' for none), 9 its index, 10 its JSON,
--       11 idempotency key's digest ('' for none), 12 its JSON, 13 its time to live in ms,
--       14 index of the first turn to undo ('' for none), 15 digests of what was said, by spaces: up to the turn's reply,
--       and each system message by itself, 16 number of versions to forget, 17 number of marks to forget, then those
--       versions, then those marks, then the head's new fields and values.
local head, versions, turns, turn_order = KEYS[1], KEYS[3], KEYS[4], KEYS[5]
local idempotency, idempotency_expiry, staged, history = KEYS[6], KEYS[7], KEYS[8], KEYS[9]
local num_chunks = tonumber(ARGV[7])

-- Checks, before anything is written. A repeat of a commit that happened is told so, whatever has changed since.
local record = redis.call('HGET', versions, ARGV[4])
if record and cjson.decode(record).commit_id == ARGV[5] then
  return 'REPEATED'
end
if redis.call('GET', KEYS[2]) ~= ARGV[1] or redis.call('HGET', head, 'fence') ~= ARGV[2] then
  return 'LOST'
end
if redis.call('HGET', head, 'version') ~= ARGV[3] then
  return 'VERSION'
end
local clock = redis.call('TIME')
local now_ms = clock[1] * 1000 + math.floor(clock[2] / 1000)
if ARGV[11] ~= '' then
  local expiry_ms = redis.call('ZSCORE', idempotency_expiry, ARGV[11])
  if expiry_ms and tonumber(expiry_ms) > now_ms then
    return 'KEY'
  end
end
for i = 10, 9 + num_chunks do
  if redis.call('EXISTS', KEYS[i]) == 0 then
    return 'MISSING'
  end
end

-- The head first: a store that is full or read-only refuses this write, and with it all the others.
local num_versions, num_marks = tonumber(ARGV[16]), tonumber(ARGV[17])
redis.call('HSET', head, unpack(ARGV, 18 + num_versions + num_marks))
for i = 10, 9 + num_chunks do
  redis.call('PERSIST', KEYS[i])
end
-- What is undone: turns, and the records of their keys, so that such a key may be used again.
if ARGV[14] ~= '' then
  local undone = {}
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', turn_order, ARGV[14], '+inf')) do
    undone[id] = true
    redis.call('HDEL', turns, id)
  end
  redis.call('ZREMRANGEBYSCORE', turn_order, ARGV[14], '+inf')
  local used = redis.call('HGETALL', idempotency)
  for i = 1, #used, 2 do
    if undone[cjson.decode(used[i + 1]).turn_id] then
      redis.call('HDEL', idempotency, used[i])
      redis.call('ZREM', idempotency_expiry, used[i])
    end
  end
  local said = redis.call('HGETALL', history)
  for i = 1, #said, 2 do
    if tonumber(said[i + 1]) >= tonumber(ARGV[14]) then
      redis.call('HDEL', history, said[i])
    end
  end
end

redis.call('HSET', versions, ARGV[4], ARGV[6])
if ARGV[8] ~= '' then
  redis.call('HSET', turns, ARGV[8], ARGV[10])
  redis.call('ZADD', turn_order, ARGV[9], ARGV[8])
  for digest in string.gmatch(ARGV[15], '%S+') do
    redis.call('HSET', history, digest, ARGV[9])
  end
end

-- What nobody needs any more.
for i = 18, 17 + num_versions do
  redis.call('HDEL', versions, ARGV[i])
end
for i = 18 + num_versions, 17 + num_versions + num_marks do
  redis.call('HDEL', staged, ARGV[i])
end
for i = 10 + num_chunks, #KEYS do
  redis.call('UNLINK', KEYS[i])
end
for _, old in ipairs(redis.call('ZRANGEBYSCORE', idempotency_expiry, '-inf', now_ms, 'LIMIT', 0, 100)) do
  redis.call('HDEL', idempotency, old)
  redis.call('ZREM', idempotency_expiry, old)
end
if ARGV[11] ~= '' then
  redis.call('HSET', idempotency, ARGV[11], ARGV[12])
  redis.call('ZADD', idempotency_expiry, now_ms + tonumber(ARGV[13]), ARGV[11])
end
return 'OK'
