-- Stores a label config, or renews it; of too many those that were used longest ago are forgotten.
--
-- KEYS: 1 label config, 2 all of them by their last use.
-- ARGV: 1 start of the names of label configs, 2 digest, 3 XML, 4 unix time, 5 s to live, 6 most label configs.
redis.call('SET', KEYS[1], ARGV[3], 'EX', ARGV[5])
redis.call('ZADD', KEYS[2], ARGV[4], ARGV[2])
local surplus = redis.call('ZCARD', KEYS[2]) - tonumber(ARGV[6])
if surplus > 0 then
  for _, digest in ipairs(redis.call('ZRANGE', KEYS[2], 0, surplus - 1)) do redis.call('DEL', ARGV[1] .. digest) end
  redis.call('ZREMRANGEBYRANK', KEYS[2], 0, surplus - 1)
end
