-- Releases leases and wakes the waiting replicas. A fulfilled lease is kept for some seconds, so that replicas look up
-- its result. Arguments: token, seconds, then for each key `fulfilled` or `failed`, or `stream` if it is the stream on
-- which replicas wait.
for i, key in ipairs(KEYS) do
  local state = text(i + 2)
  local lease = state ~= 'stream' and redis.call('HGET', key, text(1))
  if state == 'stream' then
    redis.call('XADD', key, '*', 'landed', '1')
    redis.call('EXPIRE', key, number(2) * 2)
  elseif lease and state == 'fulfilled' then
    local till = string.format(' %.3f', now + number(2))
    redis.call('HSET', key, text(1), (string.gsub(lease, ' %S+$', till)))
  elseif lease then
    redis.call('HDEL', key, text(1))
  end
end
