-- Adds to the sum of each key, and returns the sums. Arguments: an amount for each key, then the time to live of the
-- sums in seconds.
local sums = {}
for i, key in ipairs(KEYS) do
  sums[i] = redis.call('INCRBY', key, text(i))
  redis.call('EXPIRE', key, number(#KEYS + 1))
end
return sums
