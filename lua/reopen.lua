-- Closes a shard that lost its data, or opens it in the next epoch.
--
-- KEYS: meta. ARGV: the packed {epoch, 1 to close it in that epoch, 0 to open it in that epoch, the epoch that it was found
--   in + 1, or 0 where it was missing}.
-- Closing: from then on no batch applies, so that what is in the log is all there will be. A shard that stands in an
--   earlier epoch is closed in the one that is named: else who is late in opening that one would still do so. One that stands
--   elsewhere than it was found stays: others opened it meanwhile.
-- Opening: only a shard that is closed in the epoch before.
-- Answers the packed {epoch, counter, 1 while it is closed}: how it stood before where it was closed, and how it stands
--   now where it was to be opened. Epoch -1: there was no meta.

local request = cmsgpack.unpack(ARGV[1])
local epoch = request[1]
local packed = redis.call('GET', KEYS[1])
local meta = packed and cmsgpack.unpack(packed)
if meta and meta[1] ~= 3 then return redis.error_reply('FGVERSION this ledger was made by another version') end
local before = meta and {meta[2], meta[3], meta[7] or 0} or {-1, 0, 0}
if request[2] == 1 then
  if before[1] + 1 ~= request[3] then return cmsgpack.pack(before) end
  if not meta then
    meta = {3, epoch, 0, 0, 0, {}, 1}
  elseif meta[2] < epoch then
    -- The ledger's clock never runs backwards.
    meta = {3, epoch, 0, 0, meta[5], {}, 1}
  elseif meta[2] == epoch then
    meta[7] = 1
  else
    return cmsgpack.pack(before)
  end
  redis.call('SET', KEYS[1], cmsgpack.pack(meta))
  return cmsgpack.pack(before)
end
if not meta or meta[2] ~= epoch - 1 or meta[7] ~= 1 then return cmsgpack.pack(before) end
local clock = redis.call('TIME')
local opened_at = math.max(tonumber(clock[1]) * 1000000 + tonumber(clock[2]), meta[5])
redis.call('SET', KEYS[1], cmsgpack.pack({3, epoch, 0, 0, meta[5], {}, 0, opened_at}))
return cmsgpack.pack({epoch, 0, 0})
