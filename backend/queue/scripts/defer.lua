-- Hands tasks to the pusher instead of answering them, but for those that were delivered while the request waited.
--
-- A task that another request claims is deferred as well: the pusher waits until that claim has ended, and whoever
-- answers ends the deferral (release.lua). A request that dies with its claims must not take the tasks along. The record
-- is kept without a lifetime until it is delivered.
--
-- KEYS: ids of the tasks.
-- ARGV: 1 names of keys (JSON), 2 claim, then for each task what the pusher needs (JSON).
-- Returns: for each task 1 if it is deferred now, 0 if it was delivered, -1 if there is no such task.
local names = cjson.decode(ARGV[1])
local answers = {}
for i, job in ipairs(KEYS) do
  local key, claim = names.task .. job, names.claim .. job
  local delivery = redis.call('HGET', key, 'delivery')
  local is_delivered = redis.call('SISMEMBER', names.pushing, job) == 1
                       or redis.call('EXISTS', names.pushed .. job) == 1
                       or delivery == 'answered' or delivery == 'pushed'
  if redis.call('HEXISTS', key, 'state') == 0 then
    answers[i] = -1
  elseif is_delivered then
    answers[i] = 0
  else
    if redis.call('GET', claim) == ARGV[2] then redis.call('DEL', claim) end
    redis.call('HSET', names.deferred, job, ARGV[i + 2])
    redis.call('HSET', key, 'delivery', 'deferred')
    redis.call('PERSIST', key)
    answers[i] = 1
  end
end
return answers
