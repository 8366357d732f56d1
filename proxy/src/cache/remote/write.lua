-- Keeps a response, unless what was in force when its fetch began is not any more.
-- KEYS: the epochs of everything, the service, its port; the path's hash.
-- ARGV: the three epochs and the generation then; field and value of the names by which responses vary; field and value of
-- the response; how long it is kept (ms); how many fields there may be.
for at = 1, 3 do
  if redis.call('TYPE', KEYS[at])['ok'] ~= 'string' then return 0 end
  if redis.call('GETRANGE', KEYS[at], 0, 15) ~= ARGV[at] then return 0 end
end
local shelf = KEYS[4]
local kind = redis.call('TYPE', shelf)['ok']
local generation = ''
if kind == 'hash' then
  local length = redis.call('HSTRLEN', shelf, 'g')
  if length > 0 and length <= 16 then generation = redis.call('HGET', shelf, 'g') end
elseif kind ~= 'none' then
  redis.call('DEL', shelf)
end
if generation ~= ARGV[4] then return 0 end
if kind == 'hash' and redis.call('HEXISTS', shelf, ARGV[7]) == 0
    and redis.call('HLEN', shelf) >= tonumber(ARGV[10]) then
  redis.call('DEL', shelf)
  if generation ~= '' then redis.call('HSET', shelf, 'g', generation) end
end
-- First: what a script does after its first change is not refused any more where memory is full.
redis.call('HSET', shelf, ARGV[7], ARGV[8])
if ARGV[6] == '' then redis.call('HDEL', shelf, ARGV[5]) else redis.call('HSET', shelf, ARGV[5], ARGV[6]) end
if redis.call('PTTL', shelf) < tonumber(ARGV[9]) then redis.call('PEXPIRE', shelf, ARGV[9]) end
return 1
