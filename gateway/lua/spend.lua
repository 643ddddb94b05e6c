-- Adds to the sum of each key, and returns the sums. Arguments: the time to live of the sums in seconds, then an amount
-- for each key.
local sums = {}
for i, key in ipairs(KEYS) do
  sums[i] = redis.call('INCRBY', key, text(i + 1))
  redis.call('EXPIRE', key, number(1))
end
return sums
