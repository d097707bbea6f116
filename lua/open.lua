-- Finds or makes the shard's meta.
--
-- KEYS: meta, the event stream of the epoch asked for. ARGV: the packed {epoch, 1 to make it where it is missing}.
-- Answers the packed {epoch, counter, flushed, 1 while it is closed}; epoch -1: there is no meta, -2: that epoch was used.

local values = redis.call('MGET', KEYS[1])
if values[1] then
  local meta = cmsgpack.unpack(values[1])
  if meta[1] ~= 3 then return redis.error_reply('FGVERSION this ledger was made by another version') end
  return cmsgpack.pack({meta[2], meta[3], meta[4], meta[7] or 0})
end
local request = cmsgpack.unpack(ARGV[1])
local epoch = request[1]
local clock = redis.call('TIME')
if request[2] ~= 1 then return cmsgpack.pack({-1, 0, 0, 0}) end
if redis.call('EXISTS', KEYS[2]) == 1 then return cmsgpack.pack({-2, 0, 0, 0}) end
-- Epochs after the first begin with a loss.
local opened_at = epoch > 0 and tonumber(clock[1]) * 1000000 + tonumber(clock[2]) or 0
redis.call('SET', KEYS[1], cmsgpack.pack({3, epoch, 0, 0, 0, {}, 0, opened_at}))
return cmsgpack.pack({epoch, 0, 0, 0})
