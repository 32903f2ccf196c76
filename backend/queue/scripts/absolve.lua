-- Takes back the deaths of a worker that seemed dead and lives: it was cut off or frozen, which no task causes.
--
-- Tasks that were parked for it are queued again, and deferred again where nobody has delivered them since.
--
-- KEYS: 1 what was taken from the worker, 2 list of waiting ids.
-- ARGV: 1 names of keys (JSON), 2 name of the worker, 3 deaths until a task is parked, 4 s that waiting tasks are kept.
-- Returns: ids absolved.
local names = cjson.decode(ARGV[1])
local absolved = {}
for _, job in ipairs(redis.call('SMEMBERS', KEYS[1])) do
  local key = names.task .. job
  local fields = redis.call('HMGET', key, 'state', 'deaths', 'payload')
  if fields[2] and fields[2] ~= '' then
    local left = {}
    for _, name in ipairs(cjson.decode(fields[2])) do
      if name ~= ARGV[2] then left[#left + 1] = name end
    end
    redis.call('HSET', key, 'deaths', #left > 0 and cjson.encode(left) or '')
    absolved[#absolved + 1] = job
    if fields[1] == 'parked' and fields[3] and #left < tonumber(ARGV[3]) then
      redis.call('HSET', key, 'state', 'queued')
      redis.call('HDEL', key, 'error', 'hint', 'finished_at')
      redis.call('EXPIRE', key, ARGV[4])
      redis.call('LPUSH', KEYS[2], job)
      local facts = redis.call('HMGET', key, 'delivery', 'project', 'task')
      if facts[1] == 'deferred' then
        redis.call('HSET', names.deferred, job, cjson.encode({project = facts[2], task = facts[3]}))
        redis.call('PERSIST', key)
      end
    end
  end
end
redis.call('DEL', KEYS[1])
return absolved
