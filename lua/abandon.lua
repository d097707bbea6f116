-- Returns what a fenced session holds in some of the accounts it touches, one abandoned event for each. When it touches
-- none any more it leaves the registry; its marker stays for a day, so that a batch that was long under way cannot open it again.
--
-- KEYS: touched set, event stream, session registry, meta, session, then the accounts.
-- ARGV: the packed {session, epoch, prefix length}.
-- Answers the packed {accounts left, micro-credits forfeited, accounts that cannot be read}; accounts left -1: it is not fenced.

local request = cmsgpack.unpack(ARGV[1])
local values = redis.call('MGET', unpack(KEYS, 4))
local clock = redis.call('TIME')
local meta = values[1] and cmsgpack.unpack(values[1])
local state = values[2] and cmsgpack.unpack(values[2])
if not meta or meta[2] ~= request[2] or meta[7] == 1 or not state or state[2] == 0 then return cmsgpack.pack({-1, 0, 0}) end
now = tonumber(clock[1]) * 1000000 + tonumber(clock[2])
if now < meta[5] then now = meta[5] end
meta[5] = now

local forfeited, unreadable = 0, 0
local sets, names = {}, {}
local function abandon(packed)
  -- Most accounts that a session touched hold nothing of it any more.
  if is_plain(packed) then
    local _, _, _, _, _, _, _, _, session, live = struct.unpack(PLAIN, packed)
    if session ~= request[1] or live == 0 then return nil end
  end
  local account = read_account(packed)
  local holder = find_holder(account, request[1])
  if not holder then return nil end
  local events_before = #events
  local amount = abandon_at(account, holder)
  tidy(account, events_before)
  return amount, pack_account(account)
end
-- After the prefix comes `acct:`.
name_begins = request[3] + 6
for i = 6, #KEYS do
  key_index = i
  names[#names + 1] = string.sub(KEYS[i], name_begins)
  local packed, events_before = values[i - 3], #events
  if packed then
    local ok, amount, account = pcall(abandon, packed)
    if ok then
      if amount then
        forfeited = forfeited + amount
        sets[#sets + 1] = KEYS[i]
        sets[#sets + 1] = account
      end
    else
      unreadable = unreadable + 1
      for k = #events, events_before + 1, -1 do events[k] = nil end
    end
  end
end

local left = redis.call('SCARD', KEYS[1])
local entry
if #events > 0 then
  meta[3] = meta[3] + 1
  local list = {request[1], state[1], now}
  list_events(list, 3)
  entry = cmsgpack.pack(list)
end
-- Only members were named, so that none left means done.
local known = 0
if #names > 0 then
  local members = redis.call('SMISMEMBER', KEYS[1], unpack(names))
  for i = 1, #members do known = known + members[i] end
end
left = left - known
if left == 0 then
  local fenced_now = {}
  for i = 1, #meta[6] do
    if meta[6][i] ~= request[1] then fenced_now[#fenced_now + 1] = meta[6][i] end
  end
  meta[6] = fenced_now
end
sets[#sets + 1] = KEYS[4]
sets[#sets + 1] = cmsgpack.pack(meta)

if entry then redis.call('XADD', KEYS[2], string.format('%.0f-0', meta[3]), 'b', entry) end
redis.call('MSET', unpack(sets))
if #names > 0 then redis.call('SREM', KEYS[1], unpack(names)) end
if left == 0 then
  redis.call('SREM', KEYS[3], string.format('%.0f', request[1]))
  redis.call('PEXPIRE', KEYS[5], '86400000')
end
return cmsgpack.pack({left, forfeited, unreadable})
