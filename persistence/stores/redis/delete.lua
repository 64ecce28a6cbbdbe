-- Deletes rows.
--
-- KEYS: index, rows
-- ARGV: command that tells of changes or '', its channel
-- Answers with the number deleted.
local index = KEYS[1]
local keys, names = {}, {}
local member = #index + 2
for i = 2, #KEYS do
  if redis.call('EXISTS', KEYS[i]) == 1 then
    keys[#keys + 1] = KEYS[i]
    names[#names + 1] = string.sub(KEYS[i], member)
  end
end
if #keys == 0 then return 0 end
-- First, as it is refused if the index is none, and nothing is deleted.
redis.call('ZREM', index, unpack(names))
redis.call('DEL', unpack(keys))
if ARGV[1] ~= '' then redis.pcall(ARGV[1], ARGV[2], table.concat(names, '\0')) end
return #keys
