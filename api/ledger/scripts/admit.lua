-- May a request of this key run? If so, reserve what it can cost at most, by the limits that the key has now.
-- KEYS: heartbeat, keys, account, held, charges, usage of today
-- ARGV: time, lease, SHA-256 of the key, its name, reservation
-- Returns {'closed'}, {'unknown'}, or {'yes' or 'no', key, requests spent, tokens spent, answers held, tokens held,
-- tokens used today}
local heartbeat = redis.call('HMGET', KEYS[1], 'beat', 'from')
if not heartbeat[1] or now - heartbeat[1] > tonumber(ARGV[2]) or now < tonumber(heartbeat[2]) then return {'closed'} end
local key = redis.call('HGET', KEYS[2], ARGV[3])
if not key then return {'unknown'} end
local limits = cjson.decode(key).limits or {}
local function limit(name) return tonumber(limits[name] ~= cjson.null and limits[name] or 0) end
local a_day, at_once = limit('tokens_per_day'), limit('answers_at_once')
local id, tokens, answers = parts(ARGV[5])

local of_requests = bucket(KEYS[3], 'requests', limit('requests_per_minute'))
local of_tokens = bucket(KEYS[3], 'tokens', limit('tokens_per_minute'), KEYS[5])
for _, lapsed in ipairs(redis.call('ZRANGEBYSCORE', KEYS[4], '-inf', now)) do -- of a replica that is gone
  redis.call('ZREM', KEYS[4], lapsed)
  local its_id, its_tokens = parts(lapsed)
  give_back(of_tokens, its_id, its_tokens)
end
local tokens_held, answers_held = 0, 0
if a_day > 0 or at_once > 0 then
  for _, other in ipairs(redis.call('ZRANGE', KEYS[4], 0, -1)) do
    local _, its_tokens, its_answers = parts(other)
    tokens_held, answers_held = tokens_held + its_tokens, answers_held + its_answers
  end
end
local used = 0
if a_day > 0 then
  for _, count in ipairs({'prompt_tokens', 'completion_tokens'}) do
    used = used + tonumber(redis.call('HGET', KEYS[6], ARGV[4] .. ':' .. count) or 0)
  end
end

local fits = (at_once == 0 or answers_held + answers <= at_once) and fits_in(of_requests, 1)
  and fits_in(of_tokens, tokens) and (a_day == 0 or used + tokens_held + tokens <= a_day)
if fits then
  charge(of_requests, id, 1)
  charge(of_tokens, id, tokens)
  redis.call('ZADD', KEYS[4], text(now + ARGV[2]), ARGV[5])
  redis.call('EXPIRE', KEYS[4], KEEP_S)
end
save(of_requests)
save(of_tokens)
return {fits and 'yes' or 'no', key, text(of_requests.spent), text(of_tokens.spent), answers_held, tokens_held, used}
