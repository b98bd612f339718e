-- A request has ended: count what it used, and give back the rest of its reservation. Once, however often it is sent.
-- KEYS: written by this replica, account, held, usage of that day
-- ARGV: number of the request at this replica, reservation, tokens a minute (0: no limit), name of the key,
--       tokens of its prompt and of its answers
local number = tonumber(ARGV[1])
if number <= tonumber(redis.call('GET', KEYS[1]) or 0) then return 0 end
redis.call('SET', KEYS[1], number, 'EX', 7 * 86400)
local back = -ARGV[5] - ARGV[6]
if redis.call('ZREM', KEYS[3], ARGV[2]) == 1 then back = back + parts(ARGV[2]) end -- or it has lapsed
local size = tonumber(ARGV[3])
put(KEYS[2], 'tokens', size, left(KEYS[2], 'tokens', size) + back)
redis.call('HINCRBY', KEYS[4], ARGV[4] .. ':requests', 1)
redis.call('HINCRBY', KEYS[4], ARGV[4] .. ':prompt_tokens', ARGV[5])
redis.call('HINCRBY', KEYS[4], ARGV[4] .. ':completion_tokens', ARGV[6])
return 1
