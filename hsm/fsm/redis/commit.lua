-- Changes a machine, its place in the state sets, events and outcomes together, or nothing. Everything that can go
-- wrong goes wrong before the first write.
--
-- KEYS: machine, its pending events, its requests, state set to leave, state set to enter, states, waiting machines,
-- accepted events, sequence, notifications, names; then outcome and event of each event
-- ARGV: digest of the machine from which all this was worked out ('' if there was none), id of the machine, 'set',
-- 'delete' or 'keep', the machine, '1' if there is a set to leave, state to enter (''), name; then for each event its
-- id, outcome, milliseconds that lives (0: for ever), event, milliseconds that lives, and notification ('')
-- Answers {'done'}; or, if an event has an outcome already or the machine is another one, {'again', machine, outcomes}.
local EVENT_KEYS, EVENT_ARGUMENTS, FIRST_KEY, FIRST_ARGUMENT = 2, 6, 12, 8
local events = (#KEYS - FIRST_KEY + 1) / EVENT_KEYS
local machine = redis.call('GET', KEYS[1])
local again = (machine and redis.sha1hex(machine) or '') ~= ARGV[1]
local outcomes = {}
for event = 0, events - 1 do
  local outcome = redis.call('GET', KEYS[FIRST_KEY + event * EVENT_KEYS])
  outcomes[event + 1] = outcome
  again = again or outcome
end
if again then return {'again', machine, outcomes} end

local id, action, leaves, state, name = ARGV[2], ARGV[3], ARGV[5] == '1', ARGV[6], ARGV[7]
local enters = state ~= ''
if leaves then redis.call('SISMEMBER', KEYS[4], id) end
if enters then
  redis.call('SISMEMBER', KEYS[5], id)
  redis.call('SISMEMBER', KEYS[6], state)
end
local waits = false
if events > 0 then
  waits = redis.call('ZCARD', KEYS[2]) > 0
  redis.call('HLEN', KEYS[3])
  redis.call('SCARD', KEYS[7])
  redis.call('HLEN', KEYS[8])
  redis.call('ZCARD', KEYS[10])
  redis.call('SCARD', KEYS[11])
end

if action == 'set' then
  redis.call('SET', KEYS[1], ARGV[4])
elseif action == 'delete' then
  redis.call('DEL', KEYS[1])
end
if leaves and not (enters and KEYS[4] == KEYS[5]) then redis.call('SREM', KEYS[4], id) end
if enters then
  redis.call('SADD', KEYS[5], id)
  redis.call('SADD', KEYS[6], state)
end
local function set(key, value, milliseconds)
  if milliseconds == '0' then
    redis.call('SET', key, value)
  else
    redis.call('SET', key, value, 'PX', milliseconds)
  end
end
for event = 0, events - 1 do
  local key, at = FIRST_KEY + event * EVENT_KEYS, FIRST_ARGUMENT + event * EVENT_ARGUMENTS
  if redis.call('EXISTS', KEYS[key + 1]) == 0 then
    set(KEYS[key + 1], ARGV[at + 3], ARGV[at + 4])
  elseif ARGV[at + 4] ~= '0' then
    redis.call('PEXPIRE', KEYS[key + 1], ARGV[at + 4])
  end
  set(KEYS[key], ARGV[at + 1], ARGV[at + 2])
  if waits and redis.call('ZREM', KEYS[2], ARGV[at]) == 1 then
    redis.call('HDEL', KEYS[3], ARGV[at])
    redis.call('HDEL', KEYS[8], ARGV[at])
  end
  if ARGV[at + 5] ~= '' then
    redis.call('ZADD', KEYS[10], 'NX', redis.call('INCR', KEYS[9]), ARGV[at + 5])
    redis.call('SADD', KEYS[11], name)
  end
end
if waits and redis.call('ZCARD', KEYS[2]) == 0 then
  redis.call('DEL', KEYS[3])
  redis.call('SREM', KEYS[7], id)
end
return {'done'}
