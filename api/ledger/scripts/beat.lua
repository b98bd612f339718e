-- Record that a replica is alive. After a time without any replica, or when Redis has lost its data, no request is
-- admitted until all replicas have had the time to report what they run.
-- KEYS: heartbeat, replicas, artifacts
-- ARGV: time, lease, that time, replica, its artifact
-- Returns the artifacts of all replicas
local last = redis.call('HGET', KEYS[1], 'beat')
if not last or now - last > tonumber(ARGV[2]) then redis.call('HSET', KEYS[1], 'from', text(now + ARGV[3])) end
redis.call('HSET', KEYS[1], 'beat', text(now))
for _, gone in ipairs(redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', now)) do
  redis.call('ZREM', KEYS[2], gone)
  redis.call('HDEL', KEYS[3], gone)
end
redis.call('ZADD', KEYS[2], text(now + ARGV[2]), ARGV[4])
redis.call('HSET', KEYS[3], ARGV[4], ARGV[5])
return redis.call('HVALS', KEYS[3])
