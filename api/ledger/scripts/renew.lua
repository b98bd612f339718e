-- Requests of a key still run. Those that Redis does not know any more are reserved again.
-- KEYS: account, held
-- ARGV: lease, tokens a minute (0: no limit), reservations
local again = 0
for i = 3, #ARGV do
  if redis.call('ZADD', KEYS[2], whole(now + ARGV[1]), ARGV[i]) == 1 then again = again + parts(ARGV[i]) end
end
redis.call('EXPIRE', KEYS[2], KEEP_S)
local size = tonumber(ARGV[2])
if again > 0 then put(KEYS[1], 'tokens', size, left(KEYS[1], 'tokens', size) - again) end
