-- Reads our mark, and makes it where there is none and it is asked for.
--
-- KEYS: meta
-- ARGV: application, version, oldest, 'create' or 'look'
-- Answers with the version and the oldest one found, 0 and 0 if there is none; or what stands in its place.
local kind = redis.call('TYPE', KEYS[1]).ok
if kind == 'none' then
  if ARGV[4] ~= 'create' then return {0, 0} end
  redis.call('HSET', KEYS[1], 'application', ARGV[1], 'version', ARGV[2], 'oldest', ARGV[3])
  return {tonumber(ARGV[2]), tonumber(ARGV[3])}
end
if kind ~= 'hash' then return 'a ' .. kind end
local mark = redis.call('HMGET', KEYS[1], 'application', 'version', 'oldest')
local version, oldest = tonumber(mark[2] or ''), tonumber(mark[3] or '')
if mark[1] ~= ARGV[1] or not version or not oldest then return 'a hash of another application' end
if ARGV[4] == 'create' and version < tonumber(ARGV[2]) then
  redis.call('HSET', KEYS[1], 'version', ARGV[2], 'oldest', ARGV[3])
  return {tonumber(ARGV[2]), tonumber(ARGV[3])}
end
return {version, oldest}
