-- Gives claims up and says which were still held.
--
-- A caller that lost the connection before it heard the answer asks again and hears the same.
--
-- KEYS: ids of the tasks.
-- ARGV: 1 names of keys (JSON), 2 claim, 3 '1' if the request answers with all of them: only if all are held, and then
--       nobody has to push them, 4 s that records without a lifetime are kept from then on.
-- Returns: for each task 1 if it was still held.
local names = cjson.decode(ARGV[1])
local is_answered = ARGV[3] == '1'
local held, is_all = {}, true
for i, job in ipairs(KEYS) do
  local is_held = redis.call('GET', names.claim .. job) == ARGV[2]
                  or redis.call('HGET', names.task .. job, 'deliverer') == ARGV[2]
  held[i] = is_held and 1 or 0
  is_all = is_all and is_held
end
if is_answered and not is_all then return held end
for i, job in ipairs(KEYS) do
  if held[i] == 1 then
    local key = names.task .. job
    if redis.call('GET', names.claim .. job) == ARGV[2] then redis.call('DEL', names.claim .. job) end
    if is_answered then
      redis.call('HDEL', names.deferred, job)
      -- Not on a record that has expired: it would come back without a lifetime.
      if redis.call('EXISTS', key) == 1 then
        redis.call('HSET', key, 'delivery', 'answered', 'deliverer', ARGV[2])
        if redis.call('TTL', key) == -1 then redis.call('EXPIRE', key, ARGV[4]) end
      end
    end
  end
end
return held
