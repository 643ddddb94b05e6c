-- Finds extents that overlap a window. Returns the values for each key. Arguments for each key: minimum kind, start and
-- end of the window, time after which the POST was sent, and the bytes that it adds to the maximum size of the reply.
local found, left = {}, 0
for i = 1, #KEYS do left = left + number(i * 5) end
for i, key in ipairs(KEYS) do
  local at = (i - 1) * 5
  found[i] = {}
  for _, field in ipairs(fields(key)) do
    local kind, first, last, sent = parse(field)
    if left >= 0 and kind and kind >= number(at + 1) and first < number(at + 3) and last > number(at + 2)
      and sent > number(at + 4)
    then
      local value = redis.call('HGET', key, field)
      left = left - #value
      if left >= 0 then table.insert(found[i], value) end
    end
  end
end
return found
