-- Queues tasks again that say they are queued and lie in no list.
--
-- KEYS: lists of waiting ids; the last one gets what was lost.
-- ARGV: 1 names of keys (JSON), then ids of tasks.
-- Returns: ids queued.
local names = cjson.decode(ARGV[1])
local queued = {}
for i = 2, #ARGV do
  local job = ARGV[i]
  local key = names.task .. job
  if redis.call('HGET', key, 'state') == 'queued' and redis.call('HEXISTS', key, 'payload') == 1 then
    local is_listed = false
    for _, list in ipairs(KEYS) do is_listed = is_listed or redis.call('LPOS', list, job) end
    if not is_listed then
      redis.call('LPUSH', KEYS[#KEYS], job)
      queued[#queued + 1] = job
    end
  end
end
return queued
