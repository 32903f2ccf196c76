-- Ends tasks that wait as failed; those that a worker was quicker to take are left alone. Nothing is pushed for them.
--
-- KEYS: lists of waiting ids. ARGV: 1 names of keys (JSON), 2 error, 3 hint, 4 unix time, 5 s to live, then ids of tasks.
-- Returns: ids cancelled.
local names = cjson.decode(ARGV[1])
local cancelled = {}
for i = 6, #ARGV do
  local job = ARGV[i]
  local key = names.task .. job
  local removed = 0
  for _, list in ipairs(KEYS) do removed = removed + redis.call('LREM', list, 0, job) end
  if removed > 0 and redis.call('HGET', key, 'state') == 'queued' then
    redis.call('HSET', key, 'state', 'failed', 'error', ARGV[2], 'hint', ARGV[3], 'finished_at', ARGV[4])
    redis.call('EXPIRE', key, ARGV[5])
    redis.call('HDEL', names.deferred, job)
    redis.call('DEL', names.requesters .. job)
    redis.call('HINCRBY', names.stats, 'tasks_failed', 1)
    redis.call('PUBLISH', names.finished_channel, job)
    cancelled[#cancelled + 1] = job
  end
end
return cancelled
