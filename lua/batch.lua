-- One numbered batch of a worker's session: reads everything, computes, then writes, the stream entry first, since
-- Redis does not roll back a script that fails midway.
--
-- KEYS: touched set, event stream, session registry, API holds, meta, session, then accounts, records and tickets.
-- ARGV: session, number, epoch, backlog limit, memory full, prefix length and entries seen, packed one after the other; the
--   details, which go into the stream as they are; then the operations, packed one after the other, in pieces that fit on
--   Lua's stack. An operation is {its length, account's place, code, arguments…} and names its keys by their place after the
--   session's.
-- meta: {3, epoch, counter, flushed, last time, fenced sessions, 1 while it is closed, when it was opened anew, or 0}. The
--   ledger's clock is Redis's, and never runs backwards: it stands still at meta's last time until Redis's has passed it.
-- session: {last number, 0 live or 1 fenced, reply to the last number}
-- Answers the packed {code, time, backlogged, counter, flushed, …}: a repeated number gets its first reply.

local OK, FENCED, LOST = 0, 1, 2
local META_VERSION = 3

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

now = tonumber(clock[1]) * 1000000 + tonumber(clock[2])
if now < meta[5] then now = meta[5] end
backlogged = memory_full == 1 or meta[3] - meta[4] >= backlog_limit

local keys = KEYS
-- The account that is at work, those that cannot be read, and what is to be written by MSET.
local at_work, broken, sets = 0, {}, {}

-- What all operations can be done by. Made when it is needed.
local seldom

-- An account that was unpacked stays so until all is done.
local function run_seldom(place, ops, at)
  seldom = seldom or make_seldom(meta, prefix_length)
  local account = accounts[place]
  if account == nil then
    account = values[place + 2] and seldom.read_account(values[place + 2])
    accounts[place] = account
  end
  local answer = seldom.operate(account, {unpack(ops, at + 1, at + ops[at] - 1)})
  logged = seldom.list_events(log, logged)
  for i = 1, #answer do answers[filled + i] = answer[i] end
  filled = filled + #answer
end

-- Everything that can fail over a value that is not what it should be. Writes nothing.
local function work()
  local values, dirty, accounts, ARGV = values, dirty, accounts, ARGV
  for piece = 3, #ARGV do
    local ops = {cmsgpack.unpack(ARGV[piece])}
    local at, length = 1, ops[1]
    while length do
      local place, code = ops[at + 1], ops[at + 2]
      local packed, changed = values[place + 2], nil
      at_work = place
      if packed and code <= 3 and #packed % 2 == 1 and accounts[place] == nil and not broken[place] then
        if code == 1 then
          changed = quick_reserve(packed, ops, at)
        elseif code == 3 then
          changed = quick_settle(packed, ops, at)
        end
      end
      if changed then
        values[place + 2], dirty[place] = changed, true
      elseif broken[place] then
        filled = filled + 1
        answers[filled] = UNREADABLE
      else
        run_seldom(place, ops, at)
      end
      at = at + length
      length = ops[at]
    end
  end
  local filled_sets = 0
  for place = 1, #keys - FIRST_KEY do
    if dirty[place] then
      at_work = place
      if accounts[place] then values[place + 2] = seldom.pack_account(accounts[place]) end
      sets[filled_sets + 1], sets[filled_sets + 2] = keys[place + FIRST_KEY], values[place + 2]
      filled_sets = filled_sets + 2
    end
  end
end

-- An unreadable account fails all its operations of this batch, and none of any other's: the work begins anew without it.
while true do
  answers, filled, log, logged = {OK, now, backlogged and 1 or 0, 0, 0}, 5, {session, number, now}, 3
  local ok, problem = pcall(work)
  if ok then break end
  if at_work == 0 or broken[at_work] then error(problem) end
  broken[at_work] = true
  -- Nothing was written yet.
  values = redis.call('MGET', unpack(KEYS, 5))
  accounts, dirty, sets, touched, seldom = {}, {}, {}, {}, nil
end

meta[5] = now
local entry
if logged > 3 then
  meta[3] = meta[3] + 1
  entry = cmsgpack.pack(log)
end
answers[4], answers[5] = meta[3], meta[4]
local reply = cmsgpack.pack(answers)
local filled_sets = #sets
sets[filled_sets + 1], sets[filled_sets + 2] = keys[5], cmsgpack.pack(meta)
sets[filled_sets + 3], sets[filled_sets + 4] = keys[6], cmsgpack.pack({number, 0, reply})
filled_sets = filled_sets + 4
local dels, tickets, holding, finished, records = {}, {}, {}, {}, {}
for place, kind in pairs(seldom and seldom.others or {}) do
  local key, value = keys[place + FIRST_KEY], seldom.unpacked[place]
  if kind == 'ticket' and value then
    tickets[key] = cmsgpack.pack(value)
  elseif kind == 'record' then
    -- The prefix, then `rec:`.
    local member, kept, last = string.sub(key, prefix_length + 5), value[4], #records
    records[last + 1], records[last + 2], records[last + 3], records[last + 4] = member, value[1], value[2], value[3]
    for i = 1, 4 do records[last + 4 + i] = kept[i] end
    if value[3] == 0 then finished[key] = member else holding[member] = string.format('%.0f', value[2]) end
    sets[filled_sets + 1], sets[filled_sets + 2] = key, cmsgpack.pack(value)
    filled_sets = filled_sets + 2
  else
    dels[#dels + 1] = key
  end
end
-- After the prefix comes `acct:`.
local joined = {}
for place in pairs(touched) do joined[#joined + 1] = string.sub(keys[place + FIRST_KEY], prefix_length + 6) end

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
if #dels > 0 then redis.call('DEL', unpack(dels)) end
for key, packed in pairs(tickets) do redis.call('SET', key, packed, 'PX', '20000') end
for _, members in ipairs(seldom and seldom.restored or {}) do redis.call('ZADD', KEYS[4], unpack(members)) end
for member, expires_at in pairs(holding) do redis.call('ZADD', KEYS[4], expires_at, member) end
for key, member in pairs(finished) do
  redis.call('ZREM', KEYS[4], member)
  redis.call('PEXPIRE', key, '86400000')
end
if number == 1 then redis.call('SADD', KEYS[3], string.format('%.0f', session)) end
return reply
