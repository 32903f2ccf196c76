-- Stores how a task ended and wakes those who wait for it.
--
-- A prediction that is there stays: a worker that was cut off may end a task that another one has ended. The record of a
-- deferred task keeps no lifetime until it is pushed.
--
-- KEYS: 1 record of the task.
-- ARGV: 1 names of keys (JSON), 2 id, 3 state, 4 s to live, 5 whether its payload is needed no more, then names and
--       values of fields.
local names = cjson.decode(ARGV[1])
local job, state = ARGV[2], ARGV[3]
if redis.call('HGET', KEYS[1], 'state') ~= 'done' then
  redis.call('HSET', KEYS[1], 'state', state, unpack(ARGV, 6))
  if ARGV[5] == '1' then redis.call('HDEL', KEYS[1], 'payload') end
  if redis.call('HEXISTS', names.deferred, job) == 0 then redis.call('EXPIRE', KEYS[1], ARGV[4]) end
  redis.call('HINCRBY', names.stats, 'tasks_' .. state, 1)
end
redis.call('DEL', names.requesters .. job)
redis.call('PUBLISH', names.finished_channel, job)
