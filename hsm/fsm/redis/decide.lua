-- Decides what becomes of a machine and of events to it, at the machine's own key, on a cluster. The decisions
-- stay in the journal until all that follows from them is written.
--
-- KEYS: machine, journal (a hash: 'turn', and a field for each decision on its way)
-- ARGV: digest of the machine from which all this was worked out ('' if there was none), turn of the journal then,
-- 'set', 'delete' or 'keep', the machine; then field and value of each decision
-- Answers 1, or 0 if the machine is another one.
local machine = redis.call('GET', KEYS[1])
if (machine and redis.sha1hex(machine) or '') ~= ARGV[1]
    or (redis.call('HGET', KEYS[2], 'turn') or '0') ~= ARGV[2] then
  return 0
end
if ARGV[3] == 'set' then
  redis.call('SET', KEYS[1], ARGV[4])
elseif ARGV[3] == 'delete' then
  redis.call('DEL', KEYS[1])
end
redis.call('HINCRBY', KEYS[2], 'turn', 1)
redis.call('PERSIST', KEYS[2])
for at = 5, #ARGV, 2 do redis.call('HSET', KEYS[2], ARGV[at], ARGV[at + 1]) end
return 1
