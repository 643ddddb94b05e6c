-- Releases leases and wakes the waiting replicas. A fulfilled lease is kept for some seconds, so that replicas look up
-- its result. Arguments: token, seconds, then for each key except the last 1 if its lease was fulfilled. The last key
-- is the stream on which replicas wait.
for i = 1, #KEYS - 1 do
  local lease = redis.call('HGET', KEYS[i], text(1))
  if lease and text(i + 2) == '1' then
    local till = string.format(' %.3f', now + number(2))
    redis.call('HSET', KEYS[i], text(1), (string.gsub(lease, ' %S+$', till)))
  elseif lease then
    redis.call('HDEL', KEYS[i], text(1))
  end
end
redis.call('XADD', KEYS[#KEYS], '*', 'landed', '1')
redis.call('EXPIRE', KEYS[#KEYS], number(2) * 2)
