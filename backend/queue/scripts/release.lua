-- Gives claims up and says which were still held.
--
-- KEYS: ids of the tasks.
-- ARGV: 1 names of keys (JSON), 2 claim, 3 '1' to give up only if all are held, 4 what to note on the records of those
--       given up or "".
-- Returns: for each task 1 if it was still held.
local names = cjson.decode(ARGV[1])
local held, is_all = {}, true
for i, job in ipairs(KEYS) do
  held[i] = redis.call('GET', names.claim .. job) == ARGV[2] and 1 or 0
  is_all = is_all and held[i] == 1
end
if ARGV[3] == '1' and not is_all then return held end
for i, job in ipairs(KEYS) do
  if held[i] == 1 then
    redis.call('DEL', names.claim .. job)
    -- Not on a record that has expired: it would come back without a lifetime.
    if ARGV[4] ~= '' and redis.call('EXISTS', names.task .. job) == 1 then
      redis.call('HSET', names.task .. job, 'delivery', ARGV[4])
    end
  end
end
return held
