-- Reserves tasks for the caller, who enqueues those that it is told are new.
--
-- Of parallel requests for one task exactly one hears "new". A task that was reserved and never described (its API
-- process died, or the server refused the description for want of memory) is new again for whoever asks next; should
-- the first go on all the same, the task lies in a list twice and is taken once.
--
-- KEYS: ids of the tasks.
-- ARGV: 1 names of keys (JSON), 2 unix time, 3 s to live, 4 name of the request that waits or "", 5 ms of its lease.
-- Returns: for each task "new", "again" (it had failed) or its present state.
local names = cjson.decode(ARGV[1])
local requester = ARGV[4]
local answers = {}
if requester ~= '' then redis.call('SET', names.requester .. requester, '1', 'PX', ARGV[5]) end
for i, job in ipairs(KEYS) do
  local key = names.task .. job
  local state = redis.call('HGET', key, 'state')
  local is_empty = state == 'queued' and redis.call('HEXISTS', key, 'payload') == 0
  if not state or state == 'failed' or is_empty then
    redis.call('DEL', key)
    redis.call('HSET', key, 'state', 'queued', 'queued_at', ARGV[2])
    redis.call('EXPIRE', key, ARGV[3])
    answers[i] = state == 'failed' and 'again' or 'new'
  else
    answers[i] = state
  end
  if requester ~= '' and state ~= 'done' and state ~= 'parked' then
    redis.call('SADD', names.requesters .. job, requester)
    redis.call('EXPIRE', names.requesters .. job, ARGV[3])
  end
end
return answers
