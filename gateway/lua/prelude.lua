-- The start of every script. It compares the clocks first, and returns {0} if they differ too much.
-- ARGV[1] is the gateway's clock in seconds since 1970, ARGV[2] the maximum difference in seconds.
-- A script is the body of `run`. `now` is the server's clock; text(i) and number(i) are the script's arguments.
local clock = redis.call('TIME')
local now = clock[1] + clock[2] / 1e6
if math.abs(tonumber(ARGV[1]) - now) > tonumber(ARGV[2]) then return {0} end
local function text(i) return ARGV[i + 2] end
local function number(i) return tonumber(ARGV[i + 2]) end
local function run()
