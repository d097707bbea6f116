-- One numbered batch of a worker's session: reads everything, computes, then writes, the stream entry first, since
-- Redis does not roll back a script that fails midway.
--
-- KEYS: touched set, event stream, session registry, API holds, meta, session, then accounts, records and tickets.
-- ARGV: session, number, epoch, backlog limit, memory full, prefix length and entries seen, packed one after the other; the
--   details, which go into the stream as they are; then the operations, packed one after the other, in pieces that fit on
--   Lua's stack. An operation is {its length, account's place, code, arguments…} and names its keys by their place after the
--   session's.
-- meta: {2, epoch, counter, flushed, last time, fenced sessions, 1 while it is closed, when it was opened anew, or 0}. The ledger's clock is Redis's, and never runs
--   backwards: it stands still at meta's last time until Redis's has passed it.
-- session: {last number, 0 live or 1 fenced, reply to the last number}
-- Answers the packed {code, time, backlogged, counter, flushed, …}: a repeated number gets its first reply.

local OK, FENCED, LOST = 0, 1, 2
local FIRST_KEY = 6
local META_VERSION = 2
-- A kept answer's day, and an hour for clocks that differ.
local RECALLED_FOR = 90000000000
local SETTLING_IN = 30000000

local number, epoch, backlog_limit, memory_full, prefix_length, seen
session, number, epoch, backlog_limit, memory_full, prefix_length, seen = cmsgpack.unpack(ARGV[1])
values = redis.call('MGET', unpack(KEYS, 5))
local clock = redis.call('TIME')

local meta = values[1] and cmsgpack.unpack(values[1])
if not meta then return cmsgpack.pack({LOST, 0, 'meta is missing'}) end
if meta[1] ~= META_VERSION then return cmsgpack.pack({LOST, 0, 'another version made it'}) end
if meta[2] ~= epoch then return cmsgpack.pack({LOST, 0, 'the epoch has passed'}) end
if meta[7] == 1 then return cmsgpack.pack({LOST, 0, 'the shard is being reopened'}) end
-- Whoever sends has seen entries that are not here.
if meta[3] < seen then return cmsgpack.pack({LOST, 0, 'entries are missing'}) end
local state = values[2] and cmsgpack.unpack(values[2])
if state then
  if number == state[1] then return state[3] end
  if number ~= state[1] + 1 then return cmsgpack.pack({LOST, 0, 'the session stands elsewhere'}) end
  if state[2] ~= 0 then return cmsgpack.pack({FENCED, 0}) end
elseif number ~= 1 then
  return cmsgpack.pack({LOST, 0, 'the session is unknown'})
end

-- After the prefix comes `acct:`.
name_begins = prefix_length + 6
now = tonumber(clock[1]) * 1000000 + tonumber(clock[2])
if now < meta[5] then now = meta[5] end
if #meta[6] > 0 then
  fenced = {}
  for i = 1, #meta[6] do fenced[meta[6][i]] = true end
end
settling_in = (meta[8] or 0) > 0 and now < meta[8] + SETTLING_IN
reopened_lately = (meta[8] or 0) > 0 and now < meta[8] + RECALLED_FOR
backlogged = memory_full == 1 or meta[3] - meta[4] >= backlog_limit

local made
seldom = function()
  if not made then made = make_seldom() end
  return made
end

local function tell(answer)
  for i = 1, #answer do answers[filled + i] = answer[i] end
  filled = filled + #answer
end

-- The account that is at work, and those that cannot be read.
local at_work, broken = 0, {}

local function run(account, ops, at)
  local code, answer, parts = ops[at + 2], nil, nil
  if account and (code == 1 or code == 3) then
    local events_before = #events
    changed = false
    if code == 1 then
      answer, parts = reserve(account, ops, at)
    else
      answer, parts = settle(account, ops, at)
    end
    if is_untidy(account) then seldom().tidy(account, events_before) end
    if changed then dirty[at_work] = 'account' end
    if code == 3 and not answer then
      answers[filled + 1], answers[filled + 2], answers[filled + 3] = SETTLED, 0, parts
      if account[FROZEN] == 0 then answers[filled + 2] = drawable(account) end
      filled = filled + 3
      return
    end
  else
    answer, parts = seldom().operate(account, {unpack(ops, at + 1, at + ops[at] - 1)})
  end
  if answer then tell(answer) else tell_reserved(account, parts) end
end

-- Everything that can fail over a value that is not what it should be. Writes nothing.
local function work()
  for piece = 3, #ARGV do
    local ops = {cmsgpack.unpack(ARGV[piece])}
    local at = 1
    while ops[at] do
      local place = ops[at + 1]
      if broken[place] then
        filled = filled + 1
        answers[filled] = UNREADABLE
      else
        at_work, key_index = place, place + FIRST_KEY
        local account = accounts[place]
        if account == nil then
          account = values[place + 2]
          if account then account = read_account(account) end
          accounts[place] = account
        end
        run(account, ops, at)
      end
      at = at + ops[at]
    end
  end
  for place, kind in pairs(dirty) do
    if kind == 'account' and accounts[place] then
      at_work = place
      dirty[place] = pack_account(accounts[place])
    end
  end
end

-- An unreadable account fails all its operations of this batch, and none of any other's: the work begins anew without it.
while true do
  answers, filled = {OK, now, backlogged and 1 or 0, 0, 0}, 5
  local ok, problem = pcall(work)
  if ok then break end
  if at_work == 0 or broken[at_work] then error(problem) end
  broken[at_work] = true
  events, accounts, unpacked, dirty, touched, recalled, restored = {}, {}, {}, {}, {}, {}, {}
end

meta[5] = now
local entry
if #events > 0 then
  meta[3] = meta[3] + 1
  entry = pack_events({session, number, now})
end
answers[4], answers[5] = meta[3], meta[4]
local reply = cmsgpack.pack(answers)
local sets = {KEYS[5], cmsgpack.pack(meta), KEYS[6], cmsgpack.pack({number, 0, reply})}
local filled_sets = 4
local dels, tickets, holding, finished, records = {}, {}, {}, {}, {}
for place, kind in pairs(dirty) do
  local key, value = KEYS[place + FIRST_KEY], unpacked[place]
  if kind == 'account' then
    dels[#dels + 1] = key
  elseif kind == 'ticket' then
    if value then tickets[key] = cmsgpack.pack(value) else dels[#dels + 1] = key end
  else
    if kind == 'record' then
      -- The prefix, then `rec:`.
      local member, kept, last = string.sub(key, prefix_length + 5), value[4], #records
      records[last + 1], records[last + 2], records[last + 3], records[last + 4] = member, value[1], value[2], value[3]
      for i = 1, 4 do records[last + 4 + i] = kept[i] end
      if value[3] == 0 then finished[key] = member else holding[member] = string.format('%.0f', value[2]) end
      kind = cmsgpack.pack(value)
    end
    sets[filled_sets + 1], sets[filled_sets + 2] = key, kind
    filled_sets = filled_sets + 2
  end
end
local joined, left = {}, {}
for place, holds_now in pairs(touched) do
  local list = holds_now and joined or left
  list[#list + 1] = string.sub(KEYS[place + FIRST_KEY], name_begins)
end

if entry then
  local id = string.format('%.0f-0', meta[3])
  if #records > 0 then
    redis.call('XADD', KEYS[2], id, 'b', entry, 'd', ARGV[2], 'r', cmsgpack.pack(records))
  elseif ARGV[2] ~= '' then
    redis.call('XADD', KEYS[2], id, 'b', entry, 'd', ARGV[2])
  else
    redis.call('XADD', KEYS[2], id, 'b', entry)
  end
end
redis.call('MSET', unpack(sets))
if #joined > 0 then redis.call('SADD', KEYS[1], unpack(joined)) end
if #left > 0 then redis.call('SREM', KEYS[1], unpack(left)) end
if #dels > 0 then redis.call('DEL', unpack(dels)) end
for key, packed in pairs(tickets) do redis.call('SET', key, packed, 'PX', '20000') end
for i = 1, #restored do redis.call('ZADD', KEYS[4], unpack(restored[i])) end
for member, expires_at in pairs(holding) do redis.call('ZADD', KEYS[4], expires_at, member) end
for key, member in pairs(finished) do
  redis.call('ZREM', KEYS[4], member)
  redis.call('PEXPIRE', key, '86400000')
end
if number == 1 then redis.call('SADD', KEYS[3], string.format('%.0f', session)) end
return reply
