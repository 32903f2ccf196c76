-- Says which of the given tasks have ended and which are unknown; changes nothing.
--
-- KEYS: ids of the tasks. ARGV: 1 names of keys (JSON).
-- Returns: ids that have ended, ids that are unknown.
local names = cjson.decode(ARGV[1])
local ended, unknown = {}, {}
for _, job in ipairs(KEYS) do
  local state = redis.call('HGET', names.task .. job, 'state')
  if not state then unknown[#unknown + 1] = job
  elseif state ~= 'queued' and state ~= 'running' then ended[#ended + 1] = job end
end
return {ended, unknown}
