-- Asks for a training of a project; a second request is folded into the first.
--
-- One trigger is enough to look again after a round; the strongest one is kept by order of arrival.
--
-- KEYS: 1 what waits or runs for the project, 2 all projects, 3 list of trainings that wait.
-- ARGV: 1 run, 2 trigger, 3 unix time, 4 project.
-- Returns: {} if the run is new, else the run and state that it is folded into.
local run = redis.call('HGET', KEYS[1], 'run')
if run then
  redis.call('HINCRBY', KEYS[1], 'folded', 1)
  local state = redis.call('HGET', KEYS[1], 'state')
  if state ~= 'queued' then redis.call('HSET', KEYS[1], 'again', ARGV[2]) end
  return {run, state}
end
redis.call('HSET', KEYS[1], 'run', ARGV[1], 'trigger', ARGV[2], 'state', 'queued', 'requested_at', ARGV[3],
           'attempts', 0, 'folded', 0)
redis.call('SADD', KEYS[2], ARGV[4])
redis.call('RPUSH', KEYS[3], ARGV[4] .. ':' .. ARGV[1])
return {}
