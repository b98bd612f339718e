-- A request has ended: count what it used, and release the rest. Once, however often it is sent.
-- KEYS: written by this replica, account, held, charges, usage of that day
-- ARGV: time, number of the request at this replica, reservation (empty: none), tokens a minute of the key (0: no
--       limit), name of the key, tokens of its prompt and of its answers
local number = tonumber(ARGV[2])
if number <= tonumber(redis.call('GET', KEYS[1]) or 0) then return 0 end
redis.call('SET', KEYS[1], number, 'EX', 7 * 86400)
if ARGV[3] ~= '' then
  local it = bucket(KEYS[2], 'tokens', tonumber(ARGV[4]), KEYS[4])
  local id, tokens = parts(ARGV[3])
  if redis.call('ZREM', KEYS[3], ARGV[3]) == 1 then
    give_back(it, id, tokens - ARGV[6] - ARGV[7])
  else -- it had lapsed, and all of it was given back
    charge(it, id, ARGV[6] + ARGV[7])
  end
  save(it)
end
redis.call('HINCRBY', KEYS[5], ARGV[5] .. ':requests', 1)
redis.call('HINCRBY', KEYS[5], ARGV[5] .. ':prompt_tokens', ARGV[6])
redis.call('HINCRBY', KEYS[5], ARGV[5] .. ':completion_tokens', ARGV[7])
return 1
