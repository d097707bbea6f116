-- Ends a session that stands still, or that says good-bye: marks it, so that none of its batches applies any more.
--
-- KEYS: meta, session. ARGV: packed {session, number seen, epoch}.
-- Answers 1 marked (or marked before, at that number or later), 0 it stands elsewhere, -1 there is no such session, -2 another epoch.

local request = cmsgpack.unpack(ARGV[1])
local values = redis.call('MGET', KEYS[1], KEYS[2])
local meta = values[1] and cmsgpack.unpack(values[1])
if not meta or meta[2] ~= request[3] or meta[7] == 1 then return -2 end
local state = values[2] and cmsgpack.unpack(values[2])
-- A session that never came, or whose first batch is still under way, is ended before it comes.
if not state and request[2] == 0 then state = {0, 0, ''} end
if not state then return -1 end
-- In another history it may have been ended earlier.
if state[2] ~= 0 then return state[1] >= request[2] and 1 or 0 end
if state[1] ~= request[2] then return 0 end
state[2] = 1
meta[6][#meta[6] + 1] = request[1]
redis.call('MSET', KEYS[1], cmsgpack.pack(meta), KEYS[2], cmsgpack.pack(state))
return 1
