-- Gives an event an outcome without a machine; the event is pending no more, and somebody is to be told.
--
-- KEYS: outcome, pending events of the machine that it was accepted for, their requests, waiting machines, accepted
-- events, sequence, notifications, names
-- ARGV: id of the event, outcome, milliseconds it lives (0: for ever), notification (''), id of the
-- machine ('' if there is none), name, '1' to make the outcome, else it is made elsewhere
-- Answers nothing, or the outcome that there is.
local id, outcome, machine = ARGV[1], ARGV[2], ARGV[5]
local found = redis.call('GET', KEYS[1])
redis.call('ZCARD', KEYS[2])
redis.call('HLEN', KEYS[3])
redis.call('SCARD', KEYS[4])
redis.call('HLEN', KEYS[5])
if not found and ARGV[7] == '1' then
  if ARGV[4] ~= '' then
    redis.call('ZADD', KEYS[7], 'NX', redis.call('INCR', KEYS[6]), ARGV[4])
    redis.call('SADD', KEYS[8], ARGV[6])
  end
  if ARGV[3] == '0' then
    redis.call('SET', KEYS[1], outcome)
  else
    redis.call('SET', KEYS[1], outcome, 'PX', ARGV[3])
  end
end
if machine ~= '' and redis.call('ZREM', KEYS[2], id) == 1 then
  redis.call('HDEL', KEYS[3], id)
  redis.call('HDEL', KEYS[5], id)
  if redis.call('ZCARD', KEYS[2]) == 0 then
    redis.call('DEL', KEYS[3])
    redis.call('SREM', KEYS[4], machine)
  end
end
return found
