-- Finds extents that overlap a window. Returns the values for each key. Arguments for each key: minimum kind, start and
-- end of the window, time after which the POST was sent, the bytes that the key adds to the maximum size of the reply,
-- the number of the question, and 1 if the key is of every client and the question of one. What is of every client is
-- left out where an extent of the client that was sent no earlier covers it.
local found, left, own = {}, 0, {}
for i = 1, #KEYS do left = left + number(i * 7 - 2) end
local function covered(place, kind, first, last, sent)
  for _, other in ipairs(own[place] or {}) do
    if other[1] >= kind and other[2] <= first and other[3] >= last and other[4] >= sent then return true end
  end
end
for i, key in ipairs(KEYS) do
  local at = (i - 1) * 7
  local question, every = text(at + 6), text(at + 7) == '1'
  found[i] = {}
  for _, field in ipairs(fields(key)) do
    local kind, first, last, sent = parse(field)
    if left >= 0 and kind and kind >= number(at + 1) and first < number(at + 3) and last > number(at + 2)
      and sent > number(at + 4)
    then
      local day = question .. ' ' .. math.floor(first / 86400)
      if not every then
        local place = last - first > 86400 and question or day
        own[place] = own[place] or {}
        table.insert(own[place], {kind, first, last, sent})
      end
      if not every or not (covered(day, kind, first, last, sent) or covered(question, kind, first, last, sent)) then
        local value = redis.call('HGET', key, field)
        left = left - #value
        if left >= 0 then table.insert(found[i], value) end
      end
    end
  end
end
return found
