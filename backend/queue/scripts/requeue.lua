-- Takes the running tasks of a worker from it: they are queued again at the front, in no order.
--
-- With ARGV[3] == '1' the worker seems dead: it is noted as a death of each task, and a task with too many deaths is
-- parked. Does nothing when the worker gave a sign of life meanwhile. What was taken is remembered, for the case that the
-- worker was only cut off or frozen (absolve.lua).
--
-- KEYS: 1 what runs on the worker, 2 all workers, 3 heartbeat of the worker, 4 what was taken from it, 5 list of
--       waiting ids.
-- ARGV: 1 names of keys (JSON), 2 name of the worker, 3 whether it seems dead, 4 deaths until a task is parked,
--       5 unix time, 6 s that parked tasks are kept, 7 error and 8 hint of parked tasks ("%s" is the id), 9 the last
--       sign of life that is too old, "" where there is none.
-- Returns: ids queued, ids parked.
local names = cjson.decode(ARGV[1])
local worker, is_dead = ARGV[2], ARGV[3] == '1'
if is_dead then
  local beat = redis.call('GET', KEYS[3])
  if beat and beat ~= ARGV[9] then return {{}, {}} end
  redis.call('DEL', KEYS[3])
end
local queued, parked = {}, {}
for _, job in ipairs(redis.call('SMEMBERS', KEYS[1])) do
  local key = names.task .. job
  local fields = redis.call('HMGET', key, 'state', 'worker', 'deaths', 'payload')
  if fields[1] == 'running' and fields[2] == worker and fields[4] then
    local deaths = fields[3] and fields[3] ~= '' and cjson.decode(fields[3]) or {}
    if is_dead then
      deaths[#deaths + 1] = worker
      redis.call('HSET', key, 'deaths', cjson.encode(deaths))
      redis.call('SADD', KEYS[4], job)
    end
    if #deaths >= tonumber(ARGV[4]) then
      redis.call('HSET', key, 'state', 'parked', 'finished_at', ARGV[5], 'error', ARGV[7],
                 'hint', (string.gsub(ARGV[8], '%%s', job)))
      redis.call('EXPIRE', key, ARGV[6])
      redis.call('DEL', names.requesters .. job)
      redis.call('HINCRBY', names.stats, 'tasks_parked', 1)
      redis.call('PUBLISH', names.finished_channel, job)
      parked[#parked + 1] = job
    else
      redis.call('HSET', key, 'state', 'queued')
      redis.call('LPUSH', KEYS[5], job)
      queued[#queued + 1] = job
    end
  end
end
redis.call('EXPIRE', KEYS[4], ARGV[6])
redis.call('DEL', KEYS[1])
if is_dead then redis.call('SREM', KEYS[2], worker) end
return {queued, parked}
