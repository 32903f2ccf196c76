-- Hands tasks to the pusher instead of answering them.
--
-- Ours are those that this request claims, and those that nobody claims any more (the claim expired, or the server
-- forgot it): left to nobody they would never be delivered. A task that another request claims, that is being pushed
-- or that was delivered while we waited has its deliverer. The record is kept without a lifetime until it is pushed.
--
-- KEYS: ids of the tasks.
-- ARGV: 1 names of keys (JSON), 2 claim, then for each task what the pusher needs (JSON).
-- Returns: for each task 1 if it is deferred now, 0 if somebody else delivers it, -1 if there is no such task.
local names = cjson.decode(ARGV[1])
local answers = {}
for i, job in ipairs(KEYS) do
  local key, claim = names.task .. job, names.claim .. job
  local holder = redis.call('GET', claim)
  local is_ours = holder == ARGV[2]
  if not holder then
    local delivery = redis.call('HGET', key, 'delivery')
    is_ours = redis.call('SISMEMBER', names.pushing, job) == 0 and redis.call('EXISTS', names.pushed .. job) == 0
              and delivery ~= 'answered' and delivery ~= 'pushed'
  end
  if redis.call('HEXISTS', key, 'state') == 0 then
    answers[i] = -1
  elseif is_ours then
    redis.call('DEL', claim)
    redis.call('HSET', names.deferred, job, ARGV[i + 2])
    redis.call('HSET', key, 'delivery', 'deferred')
    redis.call('PERSIST', key)
    answers[i] = 1
  else
    answers[i] = 0
  end
end
return answers
