-- Queues a failed or parked task again; one that is queued, runs or is done is left alone.
--
-- Its deaths are forgotten: a person says that it is worth another try. One that was deferred is pushed this time.
--
-- KEYS: 1 record of the task, 2 list of waiting ids.
-- ARGV: 1 names of keys (JSON), 2 id, 3 unix time, 4 s that waiting tasks are kept.
-- Returns: 1 if it is queued again.
local names, job = cjson.decode(ARGV[1]), ARGV[2]
local fields = redis.call('HMGET', KEYS[1], 'state', 'payload', 'delivery', 'project', 'task')
if (fields[1] ~= 'failed' and fields[1] ~= 'parked') or not fields[2] then return 0 end
redis.call('HSET', KEYS[1], 'state', 'queued', 'queued_at', ARGV[3], 'attempts', 0)
redis.call('HDEL', KEYS[1], 'error', 'hint', 'finished_at', 'deaths')
redis.call('EXPIRE', KEYS[1], ARGV[4])
if fields[3] == 'deferred' then
  redis.call('HSET', names.deferred, job, cjson.encode({project = fields[4], task = fields[5]}))
  redis.call('PERSIST', KEYS[1])
end
redis.call('RPUSH', KEYS[2], job)
return 1
