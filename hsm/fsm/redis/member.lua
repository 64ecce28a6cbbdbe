-- Adds a machine to a state set or removes it, on a cluster, unless somebody knew of a later turn of the machine.
--
-- KEYS: state set, turns (a hash: the turn for which each member was added last)
-- ARGV: 'add' or 'remove', id of the machine, turn
-- Answers 1, or 0 if there is a later one.
local known = redis.call('HGET', KEYS[2], ARGV[2])
if known and tonumber(known) > tonumber(ARGV[3]) then return 0 end
if ARGV[1] == 'add' then
  redis.call('SADD', KEYS[1], ARGV[2])
  redis.call('HSET', KEYS[2], ARGV[2], ARGV[3])
else
  redis.call('SREM', KEYS[1], ARGV[2])
  redis.call('HDEL', KEYS[2], ARGV[2])
end
return 1
