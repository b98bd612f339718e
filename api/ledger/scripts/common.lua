-- Prepended to every other script: the time, and the buckets of account.py with the same arithmetic.
-- ARGV[1] is the time in seconds that a test gives, or empty: then it is Redis's own, the same for all replicas.
local clock = redis.call('TIME')
local now = tonumber(ARGV[1]) or clock[1] + clock[2] / 1e6
local KEEP_S = 3600 -- by then every bucket has drained
local ROUNDING = 1e-6

local function text(number) return string.format('%.17g', number) end

-- One limit a minute, as it is now. size 0: no such limit. charges: of the bucket of tokens, a list of ids, oldest
-- first, and a hash of what is left of each. Nothing is given back to the bucket of requests, so it needs neither.
local function bucket(account, what, size, charges)
  local state = redis.call('HMGET', account, what .. '_spent', what .. '_at')
  local it = {account = account, what = what, size = size, order = charges, left = charges and charges .. ':left'}
  it.spent = tonumber(state[1] or 0)
  if size == 0 then return it end
  local gone = math.max(0, now - (state[2] or now)) * size / 60
  if not charges then
    it.spent = math.max(0, it.spent - gone)
    return it
  end
  local id = gone > 0 and redis.call('LINDEX', charges, 0)
  while id do
    local left = tonumber(redis.call('HGET', it.left, id) or 0)
    it.spent = it.spent - math.min(left, gone)
    if left > gone then
      redis.call('HSET', it.left, id, text(left - gone))
      return it
    end
    gone = gone - left
    redis.call('HDEL', it.left, id)
    redis.call('LPOP', charges)
    id = redis.call('LINDEX', charges, 0)
  end
  if redis.call('EXISTS', charges) == 0 then it.spent = 0 end
  return it
end

local function charge(it, id, amount)
  if it.size == 0 then return end
  it.spent = it.spent + amount
  if it.order then
    redis.call('RPUSH', it.order, id)
    redis.call('HSET', it.left, id, amount)
  end
end

local function give_back(it, id, amount)
  if it.size == 0 then return end
  local left = tonumber(redis.call('HGET', it.left, id) or 0)
  local back = math.min(math.max(0, amount), left)
  if back == 0 then return end
  redis.call('HSET', it.left, id, text(left - back))
  it.spent = it.spent - back
end

local function fits_in(it, amount) return it.size == 0 or it.spent + amount <= it.size + ROUNDING end

local function save(it)
  if it.size == 0 then return end
  redis.call('HSET', it.account, it.what .. '_spent', text(it.spent), it.what .. '_at', text(now))
  redis.call('EXPIRE', it.account, KEEP_S)
  if it.order then
    redis.call('EXPIRE', it.order, KEEP_S)
    redis.call('EXPIRE', it.left, KEEP_S)
  end
end

-- A reservation is "<id> <tokens> <answers>".
local function parts(reservation)
  local id, tokens, answers = string.match(reservation, '^(%S+) (%d+) (%d+)$')
  return id, tonumber(tokens), tonumber(answers)
end
