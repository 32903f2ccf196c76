-- Notes that tasks were pushed, or that there is nothing to push for them.
--
-- KEYS: ids of the tasks.
-- ARGV: 1 names of keys (JSON), 2 note on the records ("pushed" or ""), 3 ms that no request may claim them, 4 s that
--       their records are kept from now on.
local names = cjson.decode(ARGV[1])
for _, job in ipairs(KEYS) do
  local key = names.task .. job
  redis.call('HDEL', names.deferred, job)
  redis.call('SREM', names.pushing, job)
  if ARGV[2] ~= '' then redis.call('SET', names.pushed .. job, '1', 'PX', ARGV[3]) end
  if redis.call('EXISTS', key) == 1 then
    if ARGV[2] ~= '' then redis.call('HSET', key, 'delivery', ARGV[2]) end
    if redis.call('TTL', key) == -1 then redis.call('EXPIRE', key, ARGV[4]) end
  end
end
