-- Takes queued tasks and notes that a worker runs them.
--
-- Only tasks that are queued are taken: a task may lie in a list twice, or have ended meanwhile. Tasks that nobody
-- waits for any more are forgotten, so that whoever asks for one afterwards hears that it is new. Goes on until there
-- is something to compute or nothing waits. A suspect, during which some worker died, comes alone (ARGV[6] == '1') or
-- stays where it is; what was behind it goes back to the front, in order.
--
-- KEYS: 1 list of waiting ids, 2 what runs on this worker, 3 all workers.
-- ARGV: 1 names of keys (JSON), 2 name of the worker, 3 unix time, 4 most tasks, 5 tasks to leave for each other
--       worker, 6 whether a suspect may come.
-- Returns: whether it is a suspect, ids dropped, then id and payload of each task.
local names = cjson.decode(ARGV[1])
local worker, now, most = ARGV[2], ARGV[3], tonumber(ARGV[4])
local others = -1
for _, name in ipairs(redis.call('SMEMBERS', KEYS[3])) do
  if string.sub(name, 1, #names.interactive_name) ~= names.interactive_name then others = others + 1 end
end
local spare = math.max(0, others) * tonumber(ARGV[5])
local dropped, is_suspect = {}, {}

local function forget_if_unwanted(job)
  local requesters = redis.call('SMEMBERS', names.requesters .. job)
  if #requesters == 0 or redis.call('HEXISTS', names.deferred, job) == 1 then return false end
  for _, requester in ipairs(requesters) do
    if redis.call('EXISTS', names.requester .. requester) == 1 then return false end
  end
  redis.call('DEL', names.task .. job, names.requesters .. job)
  redis.call('ZREM', names.tasks, job)
  return true
end

local function is_useful(job)
  local fields = redis.call('HMGET', names.task .. job, 'state', 'deaths')
  if fields[1] == 'running' then return false end
  if fields[1] == 'queued' and redis.call('HEXISTS', names.task .. job, 'payload') == 1 then
    if not forget_if_unwanted(job) then
      is_suspect[job] = fields[2] and fields[2] ~= ''
      return true
    end
    dropped[#dropped + 1] = job
  end
  return false
end

local useful, seen = {}, {}
repeat
  local room = math.min(most, redis.call('LLEN', KEYS[1]) - spare)
  local ids = room > 0 and redis.call('LPOP', KEYS[1], room) or {}
  for _, job in ipairs(ids) do
    if not seen[job] and is_useful(job) then useful[#useful + 1] = job end
    seen[job] = true
  end
until #ids == 0 or #useful > 0
if #dropped > 0 then redis.call('HINCRBY', names.stats, 'tasks_dropped', #dropped) end

local kept = 0
while kept < #useful and not is_suspect[useful[kept + 1]] do kept = kept + 1 end
local is_alone = kept == 0 and #useful > 0 and ARGV[6] == '1'
if is_alone then kept = 1 end
for i = #useful, kept + 1, -1 do redis.call('LPUSH', KEYS[1], useful[i]) end

local answer = {is_alone and 1 or 0, dropped}
for i = 1, kept do
  local key = names.task .. useful[i]
  redis.call('SADD', KEYS[2], useful[i])
  redis.call('HSET', key, 'state', 'running', 'started_at', now, 'worker', worker)
  redis.call('HINCRBY', key, 'attempts', 1)
  answer[#answer + 1] = useful[i]
  answer[#answer + 1] = redis.call('HGET', key, 'payload')
end
return answer
