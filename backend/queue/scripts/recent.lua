-- Reads the newest records, without predictions and payloads, and how many tasks are before each that waits.
--
-- One answer in JSON: thousands of commands, or of strings in an answer, cost a client in Python tenths of a second.
--
-- KEYS: 1 all tasks by age, then lists of waiting ids, those that are served first in front.
-- ARGV: 1 names of keys (JSON), 2 most records, then names of fields.
-- Returns: JSON array of [id, position or false, value or false of each field], the newest first.
local names = cjson.decode(ARGV[1])
local positions, ahead = {}, 0
for i = 2, #KEYS do
  local ids = redis.call('LRANGE', KEYS[i], 0, -1)
  for place, job in ipairs(ids) do positions[job] = positions[job] or ahead + place - 1 end
  ahead = ahead + #ids
end
local fields = {unpack(ARGV, 3)}
local rows = {}
for _, job in ipairs(redis.call('ZREVRANGE', KEYS[1], 0, tonumber(ARGV[2]) - 1)) do
  local values = redis.call('HMGET', names.task .. job, unpack(fields))
  if values[1] then rows[#rows + 1] = cjson.encode({job, positions[job] or false, unpack(values)}) end
end
return '[' .. table.concat(rows, ',') .. ']'
