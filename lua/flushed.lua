-- Notes how far the events are in the store, and trims those that were written a while ago.
--
-- KEYS: meta, event stream. ARGV: the packed {epoch, flushed, trim before, mark}. The mark is how the entry begins that the
--   store says is the last: where another stands there, or none, the shard was rolled back to another history.
-- Answers 1; 0 where the epoch is another, or the shard is closed; -1 where the history is.

local request = cmsgpack.unpack(ARGV[1])
local packed = redis.call('GET', KEYS[1])
local meta = packed and cmsgpack.unpack(packed)
if not meta or meta[2] ~= request[1] or meta[7] == 1 then return 0 end
if request[2] > 0 then
  local id = string.format('%.0f-0', request[2])
  local entry = redis.call('XRANGE', KEYS[2], id, id)[1]
  if not entry or string.sub(entry[2][2], 1, #request[4]) ~= request[4] then return -1 end
end
if request[2] > meta[4] then
  meta[4] = request[2]
  redis.call('SET', KEYS[1], cmsgpack.pack(meta))
end
-- Never beyond what is flushed, whoever asks; and the entry at the cursor stays.
if request[3] > 0 and request[3] <= meta[4] then redis.call('XTRIM', KEYS[2], 'MINID', string.format('%.0f-0', request[3])) end
return 1
