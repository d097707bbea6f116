-- One numbered batch of a worker's session: reads everything, computes, then writes, the stream entry first, since
-- Redis does not roll back a script that fails midway.
--
-- KEYS: touched set, event stream, session registry, API holds, meta, session, then accounts, records and tickets.
-- ARGV: the packed batch {session, number, epoch, backlog limit, memory full, prefix length, operations}. An operation
--   names its keys by their place after the session's.
-- meta: {1, epoch, counter, flushed, last time, fenced sessions}. The ledger's clock is Redis's, and never runs
--   backwards: it stands still at meta's last time until Redis's has passed it.
-- session: {last number, 0 live or 1 fenced, reply to the last number}
-- Answers the packed {code, time, …}: a repeated number gets its first reply.

local OK, FENCED, LOST = 0, 1, 2
local FIRST_KEY = 6

local batch = cmsgpack.unpack(ARGV[1])
local number, epoch = batch[2], batch[3]
local values = redis.call('MGET', unpack(KEYS, 5))
local clock = redis.call('TIME')
local counter_format = '%.0f'

local meta = values[1] and cmsgpack.unpack(values[1])
if not meta then return cmsgpack.pack({LOST, 0, 'meta is missing'}) end
if meta[2] ~= epoch then return cmsgpack.pack({LOST, 0, 'the epoch has passed'}) end
local state = values[2] and cmsgpack.unpack(values[2])
if state then
  if number == state[1] then return state[3] end
  if number ~= state[1] + 1 then return cmsgpack.pack({LOST, 0, 'the session stands elsewhere'}) end
  if state[2] ~= 0 then return cmsgpack.pack({FENCED, 0}) end
elseif number ~= 1 then
  return cmsgpack.pack({LOST, 0, 'the session is unknown'})
end

session = batch[1]
-- After the prefix comes `acct:`.
name_begins = batch[6] + 6
now = tonumber(clock[1]) * 1000000 + tonumber(clock[2])
if now < meta[5] then now = meta[5] end
if #meta[6] > 0 then
  fenced = {}
  for i = 1, #meta[6] do fenced[meta[6][i]] = true end
end
backlogged = batch[5] == 1 or meta[3] - meta[4] >= batch[4]

-- Unpacked as they are needed: a key's place to its value, `false` where there is none.
local unpacked, dirty = {}, {}
-- Records and tickets belong to the account whose operation wrote them; with it, they are dropped.
local written_by = {}
-- Places of accounts that cannot be read.
local broken, any_broken = {}, false

local function read(place)
  local value = unpacked[place]
  if value == nil then
    value = values[place + 2]
    if value then
      value = cmsgpack.unpack(value)
      if type(value) ~= 'table' then error('an unreadable value') end
    end
    unpacked[place] = value
  end
  return value
end

local function name_of(place)
  return string.sub(KEYS[place + FIRST_KEY], name_begins)
end

read_record = read
write_record = function(op, record)
  unpacked[op[6]], dirty[op[6]], written_by[op[6]] = record, 'record', op[1]
end

local function dispatch(account, op)
  local code = op[2]
  if code == 1 then return reserve(account, op) end
  if code == 3 then return settle(account, op) end
  if code == 2 then return extend(account, op) end
  if code == 4 then return shrink(account, op) end
  if code == 5 then return release(account, op) end
  if code == 6 then return charge(account, op) end
  if code == 7 then return hold(account, op) end
  if code == 8 then return settle_hold(account, op) end
  if code == 9 then return release_hold(account, op) end
  if code == 10 then return apply(account, op) end
  return {APPLIED}
end

-- A ticket is {number, until}; it stands until it is used or its time is over.
local function without_account(op, place)
  local code = op[2]
  if code ~= 11 and code ~= 12 then return {NOT_LOADED} end
  local ticket = read(op[3])
  local stands = ticket and now < ticket[2]
  if code == 11 then
    if stands then return {REFUSED} end
    unpacked[op[3]], dirty[op[3]], written_by[op[3]] = {op[4], now + TICKET_LIFE}, 'ticket', place
    return {TICKETED}
  end
  if not stands or ticket[1] ~= op[4] then return {REFUSED} end
  unpacked[op[3]], dirty[op[3]], written_by[op[3]] = false, 'ticket', place
  local account = loaded(op)
  unpacked[place], dirty[place] = account, 'account'
  tidy(account, #events)
  return {LOADED}
end

local function run(op)
  local place = op[1]
  local account, code = unpacked[place], op[2]
  key_index = place + FIRST_KEY
  if account == nil then
    account = read(place)
    if account then checked(account) end
  end
  if not account then return without_account(op, place) end
  if code == 15 then return balance(account) end
  if code == 11 or code == 12 then return {ALREADY} end
  if code == 13 then
    if not can_park(account, op) then return {REFUSED} end
    unpacked[place], dirty[place] = false, 'account'
    return {PARKED}
  end
  local events_before = #events
  changed = false
  local answer = dispatch(account, op)
  tidy(account, events_before)
  if changed then dirty[place] = 'account' end
  if code == 14 then return balance(account) end
  if answer[1] <= HELD then
    answer[2] = available(account)
    if code >= 6 and code <= 9 and op[6] > 0 then read(op[6])[4][2] = answer[2] end
  end
  return answer
end

local answers, ops = {}, batch[7]
for i = 1, #ops do
  local op = ops[i]
  local ok, answer = pcall(run, op)
  if ok then
    answers[i] = answer
  else
    broken[op[1]], any_broken = true, true
  end
end

if any_broken then
  -- An unreadable account fails all its operations of this batch, and none of any other's.
  local kept, names = {}, {}
  for i = 1, #ops do
    local place = ops[i][1]
    if broken[place] then
      answers[i], names[name_of(place)], touched[place], dirty[place] = {UNREADABLE}, true, nil, nil
    end
  end
  for i = 1, #events do
    if not names[events[i][1]] then kept[#kept + 1] = events[i] end
  end
  events = kept
  for place, owner in pairs(written_by) do
    if broken[owner] then dirty[place] = nil end
  end
end

meta[5] = now
local entry
if #events > 0 then
  meta[3] = meta[3] + 1
  entry = cmsgpack.pack({session, number, now, events})
end
local reply = cmsgpack.pack({OK, now, backlogged and 1 or 0, answers})
local sets = {KEYS[5], cmsgpack.pack(meta), KEYS[6], cmsgpack.pack({number, 0, reply})}
local dels, tickets, holding, finished = {}, {}, {}, {}
for place, kind in pairs(dirty) do
  local key, value = KEYS[place + FIRST_KEY], unpacked[place]
  if not value then
    dels[#dels + 1] = key
  else
    local packed = cmsgpack.pack(value)
    if kind == 'ticket' then
      tickets[key] = packed
    else
      sets[#sets + 1] = key
      sets[#sets + 1] = packed
      if kind == 'record' then
        -- The prefix, then `rec:`.
        local member = string.sub(key, batch[6] + 5)
        if value[3] == 0 then finished[key] = member else holding[member] = string.format(counter_format, value[2]) end
      end
    end
  end
end
local joined, left = {}, {}
for place, holds_now in pairs(touched) do
  local list = holds_now and joined or left
  list[#list + 1] = name_of(place)
end

if entry then redis.call('XADD', KEYS[2], string.format(counter_format .. '-0', meta[3]), 'b', entry) end
redis.call('MSET', unpack(sets))
if #joined > 0 then redis.call('SADD', KEYS[1], unpack(joined)) end
if #left > 0 then redis.call('SREM', KEYS[1], unpack(left)) end
if #dels > 0 then redis.call('DEL', unpack(dels)) end
for key, packed in pairs(tickets) do redis.call('SET', key, packed, 'PX', '20000') end
for member, expires_at in pairs(holding) do redis.call('ZADD', KEYS[4], expires_at, member) end
for key, member in pairs(finished) do
  redis.call('ZREM', KEYS[4], member)
  redis.call('PEXPIRE', key, '86400000')
end
if number == 1 then redis.call('SADD', KEYS[3], string.format(counter_format, session)) end
return reply
