-- Ends a push that failed: the tasks stay deferred.
--
-- KEYS: 1 deferred tasks, 2 tasks being pushed. ARGV: 1 '1' if Label Studio may have stored them all the same, so that
--       they are looked up there before the next push, then ids of the tasks.
for i = 2, #ARGV do
  local job = ARGV[i]
  local entry = ARGV[1] == '1' and redis.call('HGET', KEYS[1], job)
  if entry then
    local facts = cjson.decode(entry)
    facts.uncertain = true
    redis.call('HSET', KEYS[1], job, cjson.encode(facts))
  end
  redis.call('SREM', KEYS[2], job)
end
