-- Decides some transactions of one partition in order, as if one after the other, then writes what they
-- come to. Everything that can go wrong goes wrong before the first write.
--
-- KEYS: index, log, rows
-- ARGV: id of the call, command that tells of changes or '', its channel, plan, values
-- The plan: for each transaction the number of its conditions, for each the number of a key and an etag, the
-- number of its writes, for each the number of a key and what to do: d delete, s set (one value: the row),
-- e set with expiry (three values: head of the row, milliseconds to live, tail of the row).
-- Answers 0 if every transaction was carried out. Else 20 characters for each: 0000 if it was, or the number
-- of the key that stands against it; then the etag that the key has.
local index, log, id, plan = KEYS[1], KEYS[2], ARGV[1], ARGV[4]
local sub, ABSENT, FOREIGN = string.sub, '----------------', '!!!!!!!!!!!!!!!!'
local at, value, failure = 1, 5, nil

local function number()
  at = at + 4
  return tonumber(sub(plan, at - 4, at - 1))
end

local etags = {}
local function etag(key)
  local found = etags[key]
  if not found then
    found = redis.pcall('GETRANGE', KEYS[key], 0, 15)
    if type(found) ~= 'string' then
      if not string.find(found.err, 'WRONGTYPE', 1, true) then failure = found end
      found = FOREIGN
    elseif found == '' then
      found = ABSENT
    end
    etags[key] = found
  end
  return found
end

local outcomes, refused, last, touched = {}, false, {}, {}
while at <= #plan do
  local against
  for _ = 1, number() do
    local key = number()
    local expected = sub(plan, at, at + 15)
    at = at + 16
    if not against and etag(key) ~= expected then against = key end
  end
  local count = number()
  local writes, values = at, value
  for _ = 1, count do
    local key = number()
    local kind = sub(plan, at, at)
    at = at + 1
    if not against and etag(key) == FOREIGN then against = key end
    value = value + (kind == 's' and 1 or kind == 'e' and 3 or 0)
  end
  if failure then return failure end
  if against then
    refused = true
    outcomes[#outcomes + 1] = string.format('%04d', against) .. etag(against)
  else
    outcomes[#outcomes + 1] = '0000' .. ABSENT
    at, value = writes, values
    for _ = 1, count do
      local key = number()
      local kind = sub(plan, at, at)
      at = at + 1
      if not last[key] then touched[#touched + 1] = key end
      last[key] = {kind, value}
      etags[key] = kind == 'd' and ABSENT or sub(ARGV[value], 1, 16)
      value = value + (kind == 's' and 1 or kind == 'e' and 3 or 0)
    end
  end
end
local outcome = refused and table.concat(outcomes) or ''
if #touched > 0 then
  local member = #index + 2
  local added, plain, expiring, deleted, removed, names = {}, {}, {}, {}, {}, {}
  for i = 1, #touched do
    local key = touched[i]
    local name = sub(KEYS[key], member)
    local kind, first = last[key][1], last[key][2]
    names[i] = name
    if kind == 'd' then
      deleted[#deleted + 1] = KEYS[key]
      removed[#removed + 1] = name
    else
      added[#added + 1] = 0
      added[#added + 1] = name
      if kind == 's' then
        plain[#plain + 1] = KEYS[key]
        plain[#plain + 1] = ARGV[first]
      else
        expiring[#expiring + 1] = key
      end
    end
  end
  -- Lua's stack holds a few thousand values.
  -- The index comes first: if it is none, the first write is refused, and nothing is written.
  for i = 1, #added, 2000 do redis.call('ZADD', index, unpack(added, i, math.min(i + 1999, #added))) end
  for i = 1, #removed, 2000 do redis.call('ZREM', index, unpack(removed, i, math.min(i + 1999, #removed))) end
  for i = 1, #plain, 2000 do redis.call('MSET', unpack(plain, i, math.min(i + 1999, #plain))) end
  if #expiring > 0 then
    local time = redis.call('TIME')
    local now = time[1] * 1000 + math.floor(time[2] / 1000)
    for i = 1, #expiring do
      local key = expiring[i]
      local first = last[key][2]
      local moment = now + tonumber(ARGV[first + 1])
      local row = ARGV[first] .. string.format('%015.0f', moment) .. ARGV[first + 2]
      redis.call('SET', KEYS[key], row, 'PXAT', string.format('%.0f', moment))
    end
  end
  for i = 1, #deleted, 2000 do redis.call('DEL', unpack(deleted, i, math.min(i + 1999, #deleted))) end
  redis.call('SET', log, id .. outcome, 'PX', 600000)
  -- In a slot that is just moving here nobody can listen yet; the listeners are told to look for themselves.
  if ARGV[2] ~= '' then redis.pcall(ARGV[2], ARGV[3], table.concat(names, '\0')) end
end
return refused and outcome or 0
