-- Ends a run: that one only, should another have begun.
--
-- KEYS: 1 what waits or runs for the project. ARGV: 1 run.
-- Returns: the trigger that asked meanwhile, or "".
if redis.call('HGET', KEYS[1], 'run') ~= ARGV[1] then return '' end
local again = redis.call('HGET', KEYS[1], 'again')
redis.call('DEL', KEYS[1])
return again or ''
