-- Removes the index's members of rows that have expired.
--
-- KEYS: index, rows
-- Answers with the number removed.
local gone = {}
local member = #KEYS[1] + 2
for i = 2, #KEYS do
  if redis.call('EXISTS', KEYS[i]) == 0 then gone[#gone + 1] = string.sub(KEYS[i], member) end
end
if #gone == 0 then return 0 end
return redis.call('ZREM', KEYS[1], unpack(gone))
