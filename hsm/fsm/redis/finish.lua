-- Forgets decisions all of whose consequences are written, on a cluster; their events are pending no more.
--
-- KEYS: journal, pending events of the machine, their requests, machine
-- ARGV: number of fields of the journal, the fields, ids of the events
-- Answers 1 if no event of the machine is pending, else 0.
local fields = tonumber(ARGV[1])
for at = 2, fields + 1 do redis.call('HDEL', KEYS[1], ARGV[at]) end
for at = fields + 2, #ARGV do
  if redis.call('ZREM', KEYS[2], ARGV[at]) == 1 then redis.call('HDEL', KEYS[3], ARGV[at]) end
end
-- Events to machines that there never were must not fill the memory; one that was deleted may come back.
if redis.call('EXISTS', KEYS[4]) == 0 then redis.call('EXPIRE', KEYS[1], 86400) end
if redis.call('ZCARD', KEYS[2]) > 0 then return 0 end
redis.call('DEL', KEYS[3])
return 1
