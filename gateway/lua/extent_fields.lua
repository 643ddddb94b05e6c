-- The fields of a hash of extents: kind (1 with status), start, end and the time of the POST, separated by colons.
local function parse(field)
  local kind, first, last, sent = string.match(field, '^([01]):(%d+):(%d+):([%d.]+)$')
  return tonumber(kind), tonumber(first), tonumber(last), tonumber(sent)
end
local function fields(key)
  local found = redis.pcall('HKEYS', key)
  return found.err and {} or found
end
