-- Extends leases. An expired lease is not acquired again. Arguments: seconds, then the token of each key.
for i, key in ipairs(KEYS) do
  local lease = redis.call('HGET', key, text(i + 1))
  if lease then
    local till = string.format(' %.3f', now + number(1))
    redis.call('HSET', key, text(i + 1), (string.gsub(lease, ' %S+$', till)))
    redis.call('EXPIRE', key, 60)
  end
end
