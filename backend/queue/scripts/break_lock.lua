-- Ends the lock of a worker that gives no signs of life: a clock that is set back makes locks last.
--
-- KEYS: 1 lock, whose value is the name of its worker. ARGV: 1 names of keys (JSON).
-- Returns: 1 if it was ended.
local names = cjson.decode(ARGV[1])
local owner = redis.call('GET', KEYS[1])
if not owner or redis.call('EXISTS', names.worker .. owner) == 1 then return 0 end
return redis.call('DEL', KEYS[1])
