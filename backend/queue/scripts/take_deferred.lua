-- Moves deferred tasks into the set of those being pushed; those that a request claims are left out.
--
-- KEYS: 1 deferred tasks, 2 tasks being pushed. ARGV: 1 names of keys (JSON), 2 most tasks, then ids of the tasks.
-- Returns: ids that may be pushed.
local names = cjson.decode(ARGV[1])
local taken = {}
for i = 3, #ARGV do
  local job = ARGV[i]
  if #taken < tonumber(ARGV[2]) and redis.call('HEXISTS', KEYS[1], job) == 1
     and redis.call('EXISTS', names.claim .. job) == 0 then
    redis.call('SADD', KEYS[2], job)
    taken[#taken + 1] = job
  end
end
return taken
