-- The account model in Lua: what src/ledger/account says, operation by operation. Property tests hold the two together.
--
-- An account is one packed value, an array:
--   {1, grants, holders, debt, frozen, seq, change, requests_idle_at, tokens_idle_at}
--   grants: in burn order, each {id, kind, remaining, expires_at, frozen, claw}
--   holders: each {session, live holds, grant, taken, grant, taken, …}
-- Amounts are whole micro-credits below 2^53, times microseconds; flags are 0 or 1. Parts are flat: {grant, amount, …}.

local VERSION = 1
local GRANTS, HOLDERS, DEBT, FROZEN, SEQ, CHANGE, REQUESTS, TOKENS = 2, 3, 4, 5, 6, 7, 8, 9
local G_KIND, G_REMAINING, G_EXPIRES, G_FROZEN, G_CLAW = 2, 3, 4, 5, 6
local PLAN, TOPUP = 2, 3

-- {account, seq, at, kind, charged, written off, forfeited, debt delta, change, record, usage, deltas}
local E_CHARGED, E_WRITTEN_OFF, E_FORFEITED, E_DEBT, E_CHANGE, E_RECORD, E_USAGE, E_DELTAS = 5, 6, 7, 8, 9, 10, 11, 12
local SETTLED_EVENT, CHARGED_EVENT, ADJUSTED_EVENT, ABANDONED_EVENT = 1, 2, 8, 9

local LIMIT = 9007199254740991
local WRITE_OFF_AFTER = 60000000

-- The step that runs: its time, the sessions whose holds anyone may return, its events so far, how its account's key
-- stands in KEYS and where in a key the account's name begins.
local now, fenced, key_index, name_begins = 0, nil, 0, 0
local events = {}
-- Whether the operation changed the account; set by whatever changes one.
local changed = false

local function checked(account)
  if account[1] ~= VERSION then error('unknown account version') end
  return account
end

local function drawable(account)
  local sum, grants = 0, account[GRANTS]
  for i = 1, #grants do
    local grant = grants[i]
    local expires = grant[G_EXPIRES]
    if grant[G_FROZEN] == 0 and (expires == 0 or expires > now) then sum = sum + grant[G_REMAINING] end
  end
  return sum
end

local function available(account)
  if account[FROZEN] == 1 then return 0 end
  return drawable(account)
end

local function held(account)
  local sum, holders = 0, account[HOLDERS]
  for i = 1, #holders do
    local holder = holders[i]
    for k = 4, #holder, 2 do sum = sum + holder[k] end
  end
  return sum
end

local function held_from(account, id)
  local sum, holders = 0, account[HOLDERS]
  for i = 1, #holders do
    local holder = holders[i]
    for k = 3, #holder, 2 do
      if holder[k] == id then sum = sum + holder[k + 1] end
    end
  end
  return sum
end

local function find_grant(account, id)
  local grants = account[GRANTS]
  for i = 1, #grants do
    if grants[i][1] == id then return grants[i] end
  end
end

local function find_holder(account, session)
  local holders = account[HOLDERS]
  for i = 1, #holders do
    if holders[i][1] == session then return holders[i], i end
  end
end

-- Whether the session holds at least these parts, each named once.
local function holds(account, session, parts)
  local holder = find_holder(account, session)
  if not holder then return false end
  for i = 1, #parts, 2 do
    local id, amount, taken = parts[i], parts[i + 1], 0
    for k = 1, i - 1, 2 do
      if parts[k] == id then return false end
    end
    for k = 3, #holder, 2 do
      if holder[k] == id then taken = holder[k + 1] end
    end
    if amount <= 0 or amount > taken then return false end
  end
  return true
end

-- No deltas; never written to.
local NONE = {}

-- An event in the making: what one operation has done so far.
local function blank()
  return {'', 0, now, 0, 0, 0, 0, 0, 0, '', '', NONE}
end

local function shift(event, id, micro)
  if micro == 0 then return end
  local deltas = event[E_DELTAS]
  if deltas == NONE then
    event[E_DELTAS] = {id, micro}
    return
  end
  for i = 1, #deltas, 2 do
    if deltas[i] == id then
      deltas[i + 1] = deltas[i + 1] + micro
      return
    end
  end
  deltas[#deltas + 1] = id
  deltas[#deltas + 1] = micro
end

local function drop_zero_deltas(event)
  local deltas = event[E_DELTAS]
  for i = 2, #deltas, 2 do
    if deltas[i] == 0 then
      local kept = {}
      for k = 1, #deltas, 2 do
        if deltas[k + 1] ~= 0 then
          kept[#kept + 1] = deltas[k]
          kept[#kept + 1] = deltas[k + 1]
        end
      end
      event[E_DELTAS] = kept
      return
    end
  end
end

local function emit(account, kind, event)
  local seq = account[SEQ] + 1
  account[SEQ] = seq
  changed = true
  event[1], event[2], event[4] = string.sub(KEYS[key_index], name_begins), seq, kind
  drop_zero_deltas(event)
  events[#events + 1] = event
end

local function is_empty(event)
  return #event[E_DELTAS] == 0 and event[E_DEBT] == 0 and event[E_WRITTEN_OFF] == 0
end

-- Takes `amount`, which the account can pay, in burn order.
local function take(account, amount)
  local parts, grants = nil, account[GRANTS]
  for i = 1, #grants do
    if amount == 0 then break end
    local grant = grants[i]
    local remaining, expires = grant[G_REMAINING], grant[G_EXPIRES]
    if remaining > 0 and grant[G_FROZEN] == 0 and (expires == 0 or expires > now) then
      local taken = amount < remaining and amount or remaining
      grant[G_REMAINING] = remaining - taken
      amount = amount - taken
      if parts then
        parts[#parts + 1] = grant[1]
        parts[#parts + 1] = taken
      else
        parts = {grant[1], taken}
      end
    end
  end
  return parts or {}
end

-- Draws `amount` and tells the event.
local function draw(account, amount, event)
  local parts = take(account, amount)
  for i = 1, #parts, 2 do shift(event, parts[i], -parts[i + 1]) end
end

-- Pays from the balance; what is missing becomes debt.
local function pay(account, amount, event)
  if amount == 0 then return end
  local affordable = drawable(account)
  if affordable > amount then affordable = amount end
  draw(account, affordable, event)
  account[DEBT] = account[DEBT] + (amount - affordable)
  event[E_DEBT] = event[E_DEBT] + (amount - affordable)
end

local function pay_debt(account, event)
  local paid = account[DEBT]
  if paid == 0 then return end
  local affordable = drawable(account)
  if affordable < paid then paid = affordable end
  draw(account, paid, event)
  account[DEBT] = account[DEBT] - paid
  event[E_DEBT] = event[E_DEBT] - paid
end

-- What can still be charged: the debt must stay countable.
local function payable(account, actual)
  local room = LIMIT - account[DEBT]
  return actual < room and actual or room
end

-- One part of an ended hold. A revocation, written off when it was applied, takes its share.
local function resolve(account, id, paid, returned, event)
  local grant = find_grant(account, id)
  if not grant then return end
  local claw = grant[G_CLAW]
  if claw == 0 then
    grant[G_REMAINING] = grant[G_REMAINING] + returned
    shift(event, id, -paid)
    return
  end
  local discarded = returned < claw and returned or claw
  claw = claw - discarded
  grant[G_REMAINING] = grant[G_REMAINING] + returned - discarded
  local owed = paid < claw and paid or claw
  grant[G_CLAW] = claw - owed
  account[DEBT] = account[DEBT] + owed
  shift(event, id, -(paid - owed))
  event[E_DEBT] = event[E_DEBT] + owed
end

local function grow_hold(holder, parts)
  changed = true
  for i = 1, #parts, 2 do
    local id, known = parts[i], false
    for k = 3, #holder, 2 do
      if holder[k] == id then
        holder[k + 1] = holder[k + 1] + parts[i + 1]
        known = true
      end
    end
    if not known then
      holder[#holder + 1] = id
      holder[#holder + 1] = parts[i + 1]
    end
  end
end

-- Answers whether the session held nothing of this account before.
local function add_hold(account, session, parts)
  local holder = find_holder(account, session)
  if holder then
    holder[2] = holder[2] + 1
    grow_hold(holder, parts)
    return false
  end
  changed = true
  if #parts == 2 then holder = {session, 1, parts[1], parts[2]} else holder = {session, 1, unpack(parts)} end
  account[HOLDERS][#account[HOLDERS] + 1] = holder
  return true
end

local function lower_hold(holder, parts)
  changed = true
  local emptied = false
  for i = 1, #parts, 2 do
    for k = 3, #holder, 2 do
      if holder[k] == parts[i] then
        holder[k + 1] = holder[k + 1] - parts[i + 1]
        if holder[k + 1] <= 0 then emptied = true end
      end
    end
  end
  if not emptied then return end
  local at, count = 3, #holder
  for k = 3, count, 2 do
    if holder[k + 1] > 0 then
      holder[at], holder[at + 1] = holder[k], holder[k + 1]
      at = at + 2
    end
  end
  for k = at, count do holder[k] = nil end
end

-- Ends one hold. Answers what the session still had although no hold of it is left, and whether none is.
local function remove_hold(account, session, parts)
  local holder, index = find_holder(account, session)
  lower_hold(holder, parts)
  if holder[2] > 1 then
    holder[2] = holder[2] - 1
    return nil, false
  end
  table.remove(account[HOLDERS], index)
  return holder, true
end

-- Pays `actual` from a hold's parts in the order taken, returns the rest, draws on the balance for an overrun.
local function end_hold(account, session, parts, actual, event)
  local left_over, last = remove_hold(account, session, parts)
  local left = actual
  for i = 1, #parts, 2 do
    local amount = parts[i + 1]
    local paid = left < amount and left or amount
    left = left - paid
    resolve(account, parts[i], paid, amount - paid, event)
  end
  if left_over then
    for k = 3, #left_over, 2 do resolve(account, left_over[k], 0, left_over[k + 1], event) end
  end
  pay(account, left, event)
  event[E_CHARGED] = event[E_CHARGED] + actual
  return last
end

-- Returns a whole hold. Emits only where returning it changes what the store knows.
local function return_hold(account, session, parts)
  local event = blank()
  local left_over, last = remove_hold(account, session, parts)
  for i = 1, #parts, 2 do resolve(account, parts[i], 0, parts[i + 1], event) end
  if left_over then
    for k = 3, #left_over, 2 do resolve(account, left_over[k], 0, left_over[k + 1], event) end
  end
  if not is_empty(event) then emit(account, ADJUSTED_EVENT, event) end
  return last
end

local function abandon_at(account, index)
  local holder, event = table.remove(account[HOLDERS], index), blank()
  for k = 3, #holder, 2 do
    event[E_FORFEITED] = event[E_FORFEITED] + holder[k + 1]
    resolve(account, holder[k], 0, holder[k + 1], event)
  end
  -- Before anything else draws on what came back.
  pay_debt(account, event)
  emit(account, ABANDONED_EVENT, event)
  return event[E_FORFEITED]
end

local function abandon_fenced(account)
  if not fenced then return end
  local holders, i = account[HOLDERS], 1
  while i <= #holders do
    if fenced[holders[i][1]] then abandon_at(account, i) else i = i + 1 end
  end
end

local function forget_empty_grants(account)
  local grants, kept = account[GRANTS], {}
  for i = 1, #grants do
    local grant = grants[i]
    if grant[G_REMAINING] > 0 or held_from(account, grant[1]) > 0 then kept[#kept + 1] = grant end
  end
  if #kept < #grants then
    account[GRANTS] = kept
    changed = true
  end
end

local function fold(event, effect)
  event[E_WRITTEN_OFF] = event[E_WRITTEN_OFF] + effect[E_WRITTEN_OFF]
  event[E_DEBT] = event[E_DEBT] + effect[E_DEBT]
  local deltas = effect[E_DELTAS]
  for i = 1, #deltas, 2 do shift(event, deltas[i], deltas[i + 1]) end
  drop_zero_deltas(event)
end

-- Writes off what expired a minute ago, pays debt from what can be drawn, forgets empty grants. Rides in the
-- operation's last event, or in one of its own.
local function tidy(account, events_before)
  local effect, grants, empty = nil, account[GRANTS], false
  for i = 1, #grants do
    local grant = grants[i]
    local remaining, expires = grant[G_REMAINING], grant[G_EXPIRES]
    if remaining > 0 and expires > 0 and expires + WRITE_OFF_AFTER <= now then
      effect = effect or blank()
      shift(effect, grant[1], -remaining)
      effect[E_WRITTEN_OFF] = effect[E_WRITTEN_OFF] + remaining
      grant[G_REMAINING], remaining = 0, 0
    end
    if remaining <= 0 then empty = true end
  end
  if account[DEBT] > 0 then
    effect = effect or blank()
    pay_debt(account, effect)
    empty = true
  end
  if empty then forget_empty_grants(account) end
  if not effect or is_empty(effect) then return end
  if #events > events_before then fold(events[#events], effect) else emit(account, ADJUSTED_EVENT, effect) end
  changed = true
end
