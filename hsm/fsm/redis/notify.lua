-- Puts notifications behind those that there are; one that is there already stays where it is.
--
-- KEYS: sequence, notifications
-- ARGV: the notifications
-- Answers nothing.
for at = 1, #ARGV do
  redis.call('ZADD', KEYS[2], 'NX', redis.call('INCR', KEYS[1]), ARGV[at])
end
return false
