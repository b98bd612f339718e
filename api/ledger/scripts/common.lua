-- Before every other script: the time, which is Redis's for all replicas, and the buckets of a key.
local clock = redis.call('TIME')
local now = clock[1] + clock[2] / 1e6
local KEEP_S = 3600 -- by then every bucket is full again

local function whole(number) return string.format('%.17g', number) end

local function left(account, what, size)
  local state = redis.call('HMGET', account, what, what .. '_at')
  if not state[1] then return size end
  return math.min(size, state[1] + (now - state[2]) * size / 60)
end

local function put(account, what, size, amount)
  if size == 0 then return end -- no such limit
  redis.call('HSET', account, what, whole(math.min(size, amount)), what .. '_at', whole(now))
  redis.call('EXPIRE', account, KEEP_S)
end

-- A reservation is "<id> <tokens> <answers>".
local function parts(reservation)
  local tokens, answers = string.match(reservation, ' (%d+) (%d+)$')
  return tonumber(tokens), tonumber(answers)
end
