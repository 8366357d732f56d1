-- Forgets everything for a path, and refuses for a while what was fetched before.
-- KEYS: the path's hash. ARGV: another generation, how long it is remembered (ms).
redis.call('DEL', KEYS[1])
redis.call('HSET', KEYS[1], 'g', ARGV[1])
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return 1
