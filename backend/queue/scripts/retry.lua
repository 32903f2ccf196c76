-- Queues a failed or parked task again; one that is queued, runs or is done is left alone.
--
-- Its deaths are forgotten: a person says that it is worth another try.
--
-- KEYS: 1 record of the task, 2 list of waiting ids. ARGV: 1 id, 2 unix time, 3 s that waiting tasks are kept.
-- Returns: 1 if it is queued again.
local fields = redis.call('HMGET', KEYS[1], 'state', 'payload')
if (fields[1] ~= 'failed' and fields[1] ~= 'parked') or not fields[2] then return 0 end
redis.call('HSET', KEYS[1], 'state', 'queued', 'queued_at', ARGV[2], 'attempts', 0)
redis.call('HDEL', KEYS[1], 'error', 'hint', 'finished_at', 'deaths', 'delivery', 'deliverer')
redis.call('EXPIRE', KEYS[1], ARGV[3])
redis.call('RPUSH', KEYS[2], ARGV[1])
return 1
