-- Requests of a key still run. Those that Redis does not know any more are charged again.
-- KEYS: account, held, charges
-- ARGV: time, lease, tokens a minute (0: no limit), reservations
local it = bucket(KEYS[1], 'tokens', tonumber(ARGV[3]), KEYS[3])
for i = 4, #ARGV do
  if redis.call('ZADD', KEYS[2], text(now + ARGV[2]), ARGV[i]) == 1 then
    local id, tokens = parts(ARGV[i])
    charge(it, id, tokens)
  end
end
redis.call('EXPIRE', KEYS[2], KEEP_S)
save(it)
