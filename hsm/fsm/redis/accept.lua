-- Lets an event wait for its turn at its machine, behind those that wait already.
--
-- KEYS: pending events of the machine, their requests; and unless they are in other slots: outcome, event, accepted
-- events, waiting machines, names
-- ARGV: id of the event, request, id of the machine, name, event
-- Answers {'pending', place in the line, request}, of the first acceptance if there was one; {'outcome', outcome}; or
-- {'elsewhere', id of another machine that the event waits for}.
local whole = #KEYS > 2
if whole then
  local outcome = redis.call('GET', KEYS[3])
  if outcome then return {'outcome', outcome} end
  local machine = redis.call('HGET', KEYS[5], ARGV[1])
  if machine and machine ~= ARGV[3] then return {'elsewhere', machine} end
end
local place = redis.call('ZSCORE', KEYS[1], ARGV[1])
local request = redis.call('HGET', KEYS[2], ARGV[1])
if place and request then return {'pending', place, request} end
if whole then
  redis.call('SCARD', KEYS[6])
  redis.call('SADD', KEYS[7], ARGV[4])
  redis.call('SADD', KEYS[6], ARGV[3])
  redis.call('HSET', KEYS[5], ARGV[1], ARGV[3])
  redis.call('SET', KEYS[4], ARGV[5], 'NX')
  redis.call('PERSIST', KEYS[4])
end
place = redis.call('HINCRBY', KEYS[2], '', 1)
redis.call('ZADD', KEYS[1], place, ARGV[1])
redis.call('HSET', KEYS[2], ARGV[1], ARGV[2])
return {'pending', tostring(place), ARGV[2]}
