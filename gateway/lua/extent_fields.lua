-- Fields of a hash of extents: kind (1 with status, else 0), start, end and time of the POST, separated by colons.
-- Times are in seconds since 1970.
local function parse(field)
  local kind, first, last, sent = string.match(field, '^([01]):(%d+):(%d+):([%d.]+)$')
  return tonumber(kind), tonumber(first), tonumber(last), tonumber(sent)
end
local function fields(key)
  local found = redis.pcall('HKEYS', key)
  return found.err and {} or found
end
