-- What is in force for a path, and the response that is there. Garbage of others is as good as nothing.
-- KEYS: the epochs of everything, the service, its port; the path's hash.
-- ARGV: an epoch for those that have none, how long one lives (ms), field of the names by which responses vary, field of
-- the response, its most bytes, whether it is wanted though responses vary.
local found = {}
for at = 1, 3 do
  local epoch = ''
  if redis.call('TYPE', KEYS[at])['ok'] == 'string' then epoch = redis.call('GETRANGE', KEYS[at], 0, 15) end
  if epoch == '' then
    epoch = ARGV[1]
    redis.call('SET', KEYS[at], epoch, 'PX', ARGV[2])
  end
  found[at] = epoch
end
local shelf = KEYS[4]
local function short(field, most)
  local length = redis.call('HSTRLEN', shelf, field)
  if length == 0 or length > most then return '' end
  return redis.call('HGET', shelf, field)
end
local generation, names, entry = '', '', ''
if redis.call('TYPE', shelf)['ok'] == 'hash' then
  generation = short('g', 16)
  names = short(ARGV[3], 2048)
  if names == '' or ARGV[6] == '1' then entry = short(ARGV[4], tonumber(ARGV[5])) end
end
local time = redis.call('TIME')
return {found[1], found[2], found[3], generation, names, entry, time[1], time[2]}
