-- Writes a configuration unless there is one, with the sets that list it.
--
-- KEYS: configuration, set of all versions of its name, set of all names
-- ARGV: the configuration, its id, its name
-- Answers nothing, or the configuration that there is.
local found = redis.call('GET', KEYS[1])
if found then return found end
redis.call('SISMEMBER', KEYS[2], ARGV[2])
redis.call('SISMEMBER', KEYS[3], ARGV[3])
redis.call('SET', KEYS[1], ARGV[1])
redis.call('SADD', KEYS[2], ARGV[2])
redis.call('SADD', KEYS[3], ARGV[3])
return false
