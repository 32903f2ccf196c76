-- Claims the delivery of tasks for a request.
--
-- A request for one task takes the claim over from one for many: somebody is looking at that task. A deferred task
-- stays deferred: should the request die, the pusher goes on when its claim has ended.
--
-- KEYS: ids of the tasks.
-- ARGV: 1 names of keys (JSON), 2 claim "<request>:<s to live>:<number of tasks>", 3 number of tasks, 4 ms to live.
-- Returns: for each task 1 if it is claimed now.
local names = cjson.decode(ARGV[1])
local claim = ARGV[2]
local held = {}
for i, job in ipairs(KEYS) do
  local key = names.claim .. job
  local other = redis.call('GET', key)
  local size = other and tonumber(string.match(other, ':(%d+)$')) or 0
  local is_free = not other or other == claim or (tonumber(ARGV[3]) == 1 and size > 1)
  local is_in_flight = redis.call('SISMEMBER', names.pushing, job) == 1
  if is_in_flight or redis.call('EXISTS', names.pushed .. job) == 1 then is_free = false end
  if is_free then
    redis.call('SET', key, claim, 'PX', ARGV[4])
    -- From now on a note of a delivery says that somebody delivered it while this request waited.
    if redis.call('HEXISTS', names.deferred, job) == 0 then
      redis.call('HDEL', names.task .. job, 'delivery', 'deliverer')
    end
  end
  held[i] = is_free and 1 or 0
end
return held
