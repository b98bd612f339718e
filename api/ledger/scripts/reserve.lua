-- May a request of this key run? If so and if asked to, take what it can cost at most.
-- KEYS: gate, account, held, usage of today
-- ARGV: lease, name of the key, reservation, its limits (0: none): requests and tokens a minute, tokens a day,
--       answers at once; 1 to take
-- Returns {'closed'}, or {'yes' or 'no', requests left, tokens left, answers held, tokens held, tokens used today}
local gate = redis.call('HMGET', KEYS[1], 'beat', 'from')
if not gate[1] or now - gate[1] > tonumber(ARGV[1]) or now < tonumber(gate[2]) then return {'closed'} end
local name, reservation = ARGV[2], ARGV[3]
local size = {requests = tonumber(ARGV[4]), tokens = tonumber(ARGV[5])}
local a_day, at_once = tonumber(ARGV[6]), tonumber(ARGV[7])

local requests, tokens = left(KEYS[2], 'requests', size.requests), left(KEYS[2], 'tokens', size.tokens)
for _, lapsed in ipairs(redis.call('ZRANGEBYSCORE', KEYS[3], '-inf', now)) do -- of a replica that is gone
  redis.call('ZREM', KEYS[3], lapsed)
  tokens = math.min(size.tokens, tokens + parts(lapsed))
end
local tokens_held, answers_held = 0, 0
for _, other in ipairs(redis.call('ZRANGE', KEYS[3], 0, -1)) do
  local its_tokens, its_answers = parts(other)
  tokens_held, answers_held = tokens_held + its_tokens, answers_held + its_answers
end
local used = 0
for _, count in pairs(redis.call('HMGET', KEYS[4], name .. ':prompt_tokens', name .. ':completion_tokens')) do
  used = used + (tonumber(count or 0) or 0)
end

local wanted, answers = parts(reservation)
local fits = (at_once == 0 or answers_held + answers <= at_once)
  and (size.requests == 0 or 1 <= requests)
  and (size.tokens == 0 or wanted <= tokens)
  and (a_day == 0 or used + tokens_held + wanted <= a_day)
if fits and ARGV[8] == '1' then
  requests, tokens = requests - 1, tokens - wanted
  redis.call('ZADD', KEYS[3], whole(now + ARGV[1]), reservation)
  redis.call('EXPIRE', KEYS[3], KEEP_S)
end
put(KEYS[2], 'requests', size.requests, requests)
put(KEYS[2], 'tokens', size.tokens, tokens)
return {fits and 'yes' or 'no', whole(requests), whole(tokens), answers_held, tokens_held, used}
