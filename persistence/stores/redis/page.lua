-- Some rows from the beginning of a window, as one snapshot.
--
-- KEYS: index      The rows' keys follow from the index's. They are not declared, because only the index knows
--                  them; they have its hash tag, and a cluster refuses the script where they are moving away.
-- ARGV: bound to begin at, bound to end at, 'REV' or '', rows, bytes, 'values' or 'keys'
-- Answers with 1 if nothing is left, the last key it looked at, keys that are no rows any more, and the keys
-- found, each followed by its row if values are asked for.
local index, first, last = KEYS[1], ARGV[1], ARGV[2]
local reverse, wanted, room, values = ARGV[3] == 'REV', tonumber(ARGV[4]), tonumber(ARGV[5]), ARGV[6] == 'values'
local rows = string.sub(index, 1, -2) .. 'r:'
local found, stale, count, size, seen, position = {}, {}, 0, 0, 0, ''
while true do
  local asked = wanted - count
  local names
  if reverse then
    names = redis.call('ZRANGE', index, first, last, 'BYLEX', 'REV', 'LIMIT', 0, asked)
  else
    names = redis.call('ZRANGE', index, first, last, 'BYLEX', 'LIMIT', 0, asked)
  end
  for i = 1, #names do
    local name, row = names[i]
    position = name
    if values then
      row = redis.pcall('GET', rows .. name)
    else
      row = redis.pcall('EXISTS', rows .. name) == 1
    end
    if type(row) == 'table' then
      if string.find(row.err, 'WRONGTYPE', 1, true) then return {err = 'FOREIGN ' .. rows .. name} end
      return row
    end
    if row then
      count = count + 1
      found[#found + 1] = name
      if values then
        found[#found + 1] = row
        size = size + #row
        if size > room then return {0, position, stale, found} end
      end
    else
      stale[#stale + 1] = name
    end
  end
  seen = seen + #names
  if #names < asked then return {1, position, stale, found} end
  if count >= wanted or seen >= 2 * wanted + 1000 then return {0, position, stale, found} end
  first = '(' .. position
end
