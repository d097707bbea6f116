-- Notes how far the events are in the store, and trims those that were written a while ago.
--
-- KEYS: meta, event stream. ARGV: the packed {epoch, flushed, trim up to}.
-- Answers 1; 0 where the epoch is another.

local request = cmsgpack.unpack(ARGV[1])
local packed = redis.call('GET', KEYS[1])
local meta = packed and cmsgpack.unpack(packed)
if not meta or meta[2] ~= request[1] then return 0 end
if request[2] > meta[4] then
  meta[4] = request[2]
  -- A promoted replica may lack entries that are in the store already. Their numbers are not given again: a reader that
  -- stands behind them would never see what came under them.
  if meta[3] < meta[4] then meta[3] = meta[4] end
  redis.call('SET', KEYS[1], cmsgpack.pack(meta))
end
-- Never beyond what is flushed, whoever asks.
if request[3] > 0 and request[3] <= meta[4] then redis.call('XTRIM', KEYS[2], 'MINID', string.format('%.0f-0', request[3] + 1)) end
return 1
