-- Acquires a lease for each key, unless another lease covers the window. Returns for each key that other lease: its
-- token, reach and planned time; or an empty text. Arguments: token, status, start, end, reach, planned, the earliest
-- planned time of another lease, time to live in seconds.
local found = {}
for i, key in ipairs(KEYS) do
  local other = ''
  local leases = redis.call('HGETALL', key)
  for n = 1, #leases, 2 do
    local kind, start, reach, planned, till = string.match(leases[n + 1], '^(%S+) (%S+) (%S+) (%S+) (%S+)$')
    if not kind or tonumber(till) < now then
      redis.call('HDEL', key, leases[n])
    elseif other == '' and leases[n] ~= text(1) and tonumber(kind) >= number(2) and tonumber(start) <= number(3)
      and tonumber(reach) >= number(4) and tonumber(planned) >= number(7) then
      other = leases[n] .. ' ' .. reach .. ' ' .. planned
    end
  end
  if other == '' then
    local till = string.format('%.3f', now + number(8))
    redis.call('HSET', key, text(1), table.concat({text(2), text(3), text(5), text(6), till}, ' '))
    redis.call('EXPIRE', key, 60)
  end
  found[i] = other
end
return found
