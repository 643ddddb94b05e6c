-- Finds extents that overlap a window. Returns the values for each key. Arguments: minimum kind, the bytes that each key
-- adds to the maximum size of the reply, then for each key: start and end of the window, time after which the POST was
-- sent, and the number of the question, negative if the key is of every client and the question of one. An extent of
-- every client is left out where an extent of the client that was sent no earlier covers it.
local found, left, own = {}, #KEYS * number(2), {}
local function covered(place, kind, first, last, sent)
  for _, other in ipairs(own[place] or {}) do
    if other[1] >= kind and other[2] <= first and other[3] >= last and other[4] >= sent then return true end
  end
end
for i, key in ipairs(KEYS) do
  local at = i * 4 - 2
  local start, stop, after, question = number(at + 1), number(at + 2), number(at + 3), number(at + 4)
  found[i] = {}
  for _, field in ipairs(fields(key)) do
    local kind, first, last, sent = parse(field)
    if left >= 0 and kind and kind >= number(1) and first < stop and last > start and sent > after then
      local long = math.abs(question)
      local day = long .. ' ' .. math.floor(first / 86400)
      if question > 0 then
        local place = last - first > 86400 and long or day
        own[place] = own[place] or {}
        table.insert(own[place], {kind, first, last, sent})
      end
      if question > 0 or not (covered(day, kind, first, last, sent) or covered(long, kind, first, last, sent)) then
        local value = redis.call('HGET', key, field)
        left = left - #value
        if left >= 0 then table.insert(found[i], value) end
      end
    end
  end
end
return found
