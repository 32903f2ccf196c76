-- Moves deferred tasks into the set of those being pushed; what was claimed back meanwhile is left out.
--
-- KEYS: 1 deferred tasks, 2 tasks being pushed. ARGV: ids of the tasks.
-- Returns: for each task 1 if it may be pushed.
local taken = {}
for i, job in ipairs(ARGV) do
  taken[i] = redis.call('HEXISTS', KEYS[1], job)
  if taken[i] == 1 then redis.call('SADD', KEYS[2], job) end
end
return taken
