-- Stores extents, and removes extents that are older and lie within a new one. A hash has at most about 1000 extents:
-- the oldest are removed. Arguments: the time to live of a key in seconds, then field and value for each key.
for i, key in ipairs(KEYS) do
  local life, field, value = number(1), text(i * 2), text(i * 2 + 1)
  local kind, first, last, sent = parse(field)
  local rest, beaten = {}, false
  for _, other in ipairs(fields(key)) do
    local k, f, l, s = parse(other)
    if not k or s < sent - life or (k <= kind and s <= sent and f >= first and l <= last) then
      redis.call('HDEL', key, other)
    else
      beaten = beaten or (k >= kind and s >= sent and f <= first and l >= last)
      rest[#rest + 1] = {s, other}
    end
  end
  if #rest >= 1000 then
    table.sort(rest, function(a, b) return a[1] < b[1] end)
    for n = 1, 100 do redis.call('HDEL', key, rest[n][2]) end
  end
  if not beaten then redis.call('HSET', key, field, value) end
  redis.call('EXPIRE', key, life)
end
