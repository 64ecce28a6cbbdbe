-- Takes a machine off those that wait, on a cluster, unless an event to it was accepted meanwhile.
--
-- KEYS: waiting machines (a hash: of each a number that every acceptance changes)
-- ARGV: id of the machine, number that was read before its line was found to be empty
-- Answers 1, or 0 if another event came.
if redis.call('HGET', KEYS[1], ARGV[1]) ~= ARGV[2] then return 0 end
return redis.call('HDEL', KEYS[1], ARGV[1])
