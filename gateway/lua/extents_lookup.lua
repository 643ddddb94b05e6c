-- Finds extents that overlap a window. Returns the index of the key and the value of each extent. Arguments for each
-- key: minimum kind, start and end of the window, time after which the POST was sent; then the maximum size of the
-- reply in bytes.
local found, left = {}, number(#KEYS * 4 + 1)
for i, key in ipairs(KEYS) do
  local at = (i - 1) * 4
  for _, field in ipairs(fields(key)) do
    local kind, first, last, sent = parse(field)
    if kind and kind >= number(at + 1) and first < number(at + 3) and last > number(at + 2) and sent > number(at + 4)
    then
      local value = redis.call('HGET', key, field)
      left = left - #value
      if left < 0 then return found end
      found[#found + 1] = i
      found[#found + 1] = value
    end
  end
end
return found
