-- Says what is to be done for the deferred tasks of each project; changes nothing.
--
-- KEYS: 1 deferred tasks. ARGV: 1 names of keys (JSON).
-- Returns: JSON array of [project, ids with a prediction, ids that ended without one or are unknown, number of others].
local names = cjson.decode(ARGV[1])
local projects, by_name = {}, {}
local entries = redis.call('HGETALL', KEYS[1])
for i = 1, #entries, 2 do
  local job, name = entries[i], cjson.decode(entries[i + 1]).project
  local project = by_name[name]
  if not project then
    project = {name, {}, {}, 0}
    by_name[name], projects[#projects + 1] = project, project
  end
  local state = redis.call('HGET', names.task .. job, 'state')
  if state == 'queued' or state == 'running' then
    project[4] = project[4] + 1
  else
    local ids = state == 'done' and project[2] or project[3]
    ids[#ids + 1] = job
  end
end
return #projects > 0 and cjson.encode(projects) or '[]'
