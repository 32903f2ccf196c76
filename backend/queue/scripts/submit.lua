-- Queues tasks that are new or had failed, and notes who waits for them.
--
-- Of parallel requests for one task exactly one hears "new".
--
-- KEYS: 1 list of waiting ids, 2 all tasks by age.
-- ARGV: 1 names of keys (JSON), 2 unix time, 3 s that waiting tasks are kept, 4 most tasks in the index, 5 name of the
--       request that waits or "", 6 ms of its lease, then for each task its id, project, number, version, request,
--       whether it is interactive, and payload.
-- Returns: for each task "new", "again" (it had failed) or its present state.
local names, now, requester = cjson.decode(ARGV[1]), ARGV[2], ARGV[5]
local answers, is_queued = {}, false
-- The first write is one that a full queue server refuses; after a DEL it would let all of this pass.
redis.call('HINCRBY', names.stats, 'submissions', 1)
if requester ~= '' then redis.call('SET', names.requester .. requester, '1', 'PX', ARGV[6]) end
for i = 7, #ARGV, 7 do
  local job = ARGV[i]
  local key = names.task .. job
  local state = redis.call('HGET', key, 'state')
  local answer = state
  if not state or state == 'failed' then
    redis.call('DEL', key)
    redis.call('HSET', key, 'state', 'queued', 'queued_at', now, 'project', ARGV[i + 1], 'task', ARGV[i + 2],
               'model_version', ARGV[i + 3], 'request', ARGV[i + 4], 'interactive', ARGV[i + 5],
               'payload', ARGV[i + 6])
    redis.call('EXPIRE', key, ARGV[3])
    redis.call('ZADD', KEYS[2], now, job)
    redis.call('RPUSH', KEYS[1], job)
    answer, is_queued = state and 'again' or 'new', true
  end
  if requester ~= '' and state ~= 'done' and state ~= 'parked' then
    redis.call('SADD', names.requesters .. job, requester)
    redis.call('EXPIRE', names.requesters .. job, ARGV[3])
  end
  answers[#answers + 1] = answer
end
if is_queued then
  redis.call('ZREMRANGEBYRANK', KEYS[2], 0, -tonumber(ARGV[4]) - 1)
  redis.call('PUBLISH', names.queued_channel, '')
end
return answers
