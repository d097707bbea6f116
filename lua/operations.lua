-- The operations that few requests need: each takes the account and the operation's array, {place, code, arguments…},
-- and answers an array {code, …}. Where an answer tells what is available, that stands second and is filled in at the end.

local KEPT_HELD, KEPT_CHARGED, KEPT_RELEASED = 1, 2, 3
local PLAN, TOPUP = 2, 3
local TICKET_LIFE = 10000000
local RECORD_KEPT = 86400000000
local API_HOLDS_MAX = 1000
local ADJUST = 5

-- session, more, floor
local function extend(account, op)
  if not find_holder(account, op[3]) then return {UNKNOWN_HOLD} end
  if account[FROZEN] == 1 then return {FROZEN_ANSWER} end
  local more, floor = op[4], op[5]
  if drawable(account) < floor then abandon_fenced(account) end
  local can_draw = drawable(account)
  if can_draw < floor then return insufficient(account) end
  local parts = take(account, more < can_draw and more or can_draw)
  grow_hold(account, find_holder(account, op[3]), parts)
  return nil, parts
end

-- session, parts
local function shrink(account, op)
  local parts = op[4]
  local holder = holds(account, op[3], parts)
  if not holder then return {UNKNOWN_HOLD} end
  local event = blank()
  lower_hold(account, holder, parts)
  for i = 1, #parts, 2 do resolve(account, parts[i], 0, parts[i + 1], event) end
  if not is_empty(event) then emit(account, ADJUSTED_EVENT, event) end
  return {RELEASED, 0}
end

-- session, parts, tokens back
local function release(account, op)
  local whose, parts = op[3], op[4]
  local holder = holds(account, whose, parts)
  if not holder then return {UNKNOWN_HOLD} end
  return_hold(account, holder, parts)
  give_back_tokens(account, op[5])
  return {RELEASED, 0}
end

-- Records: {fingerprint, until, parts held or 0, kept answer}, the kept answer {kind, available, amount, expires at}. Each
-- change of one rides in an event, so that the store has an account and its records as of the same moment.
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

-- What the store has of a record, which tells only where none is here. (record key, 0 or the record)
local function recall(op)
  recalled[op[3]] = true
  if op[4] ~= 0 and not read(op[3]) then unpacked[op[3]] = op[4] end
  return {APPLIED}
end

-- Whether the store must be asked first: that a record is not here tells nothing.
local function is_unknown(place)
  return not read(place) and not recalled[place]
end

local function write_record(op, record)
  unpacked[op[6]], others[op[6]] = record, 'record'
end

-- What to answer when the record exists already.
local function repeated(record, fingerprint)
  if not record or (record[3] == 0 and record[2] <= now) then return nil end
  if record[1] ~= fingerprint then return {MISMATCH} end
  return {REPEATED, record[4]}
end

local function finish(op, fingerprint, kept)
  write_record(op, {fingerprint, now + RECORD_KEPT, 0, kept})
end

-- actual, must, detail, then record key, fingerprint (key 0: none)
local function charge(account, op)
  local key, fingerprint = op[6], op[7]
  if key > 0 then
    if reopened_lately and is_unknown(key) then return {UNKNOWN_RECORD} end
    local kept = repeated(read(key), fingerprint)
    if kept then return kept end
  end
  local actual = op[3]
  if op[4] == 0 then
    if backlogged then return {BACKLOGGED} end
    if account[FROZEN] == 1 then return {FROZEN_ANSWER} end
    if drawable(account) < actual then abandon_fenced(account) end
    if drawable(account) < actual then return insufficient(account) end
  end
  actual = payable(account, actual)
  local event = blank()
  pay(account, actual, event)
  event[E_CHARGED] = actual
  emit(account, CHARGED_EVENT, event, op[5])
  if key > 0 then finish(op, fingerprint, {KEPT_CHARGED, 0, actual, 0}) end
  return {SETTLED, 0, actual}
end

-- amount, expires in, must, record key, fingerprint
local function hold(account, op)
  if reopened_lately and is_unknown(op[6]) then return {UNKNOWN_RECORD} end
  local kept = repeated(read(op[6]), op[7])
  if kept then return kept end
  local amount, expires_at = op[3], now + op[4]
  if op[5] == 0 then
    if backlogged then return {BACKLOGGED} end
    if account[FROZEN] == 1 then return {FROZEN_ANSWER} end
    local holder = find_holder(account, API)
    if holder and account[holder + H_LIVE] >= API_HOLDS_MAX then return {LIMITED, LIMIT_CONCURRENCY, 1000000} end
  end
  if drawable(account) < amount then abandon_fenced(account) end
  local can_draw = drawable(account)
  if op[5] == 0 and can_draw < amount then return insufficient(account) end
  local parts = take(account, amount < can_draw and amount or can_draw)
  add_hold(account, API, parts)
  emit(account, ADJUSTED_EVENT, blank())
  write_record(op, {op[7], expires_at, parts, {KEPT_HELD, 0, amount, expires_at}})
  return {HELD, 0, amount, expires_at}
end

-- The record that is still held here and where the API's holder stands, or what to answer.
local function open_record(account, key, must)
  local record = read(key)
  -- A worker may yet claim it.
  if not record and settling_in and not must then return nil, nil, {BACKLOGGED} end
  if not record then return nil, nil, {UNKNOWN_HOLD} end
  if record[3] == 0 then return nil, nil, {FINISHED, record[4]} end
  local holder = holds(account, API, record[3])
  if not holder then return nil, nil, {UNKNOWN_HOLD} end
  return record, holder
end

-- Settles a hold that was lost with what knew of it: its worker was told that it is settled.
local function charge_lost(account, op)
  local record, actual, event = read(op[6]), payable(account, op[3]), blank()
  pay(account, actual, event)
  event[E_CHARGED] = actual
  emit(account, CHARGED_EVENT, event, op[5])
  finish(op, record and record[1] or 0, {KEPT_CHARGED, 0, actual, 0})
  return {SETTLED, 0, actual}
end

-- actual, must, detail, record key
local function settle_hold(account, op)
  if is_unknown(op[6]) then return {UNKNOWN_RECORD} end
  local must = op[4] == 1
  local record, holder, refusal = open_record(account, op[6], must)
  if not record then
    if must and refusal[1] == UNKNOWN_HOLD then return charge_lost(account, op) end
    return refusal
  end
  local actual, total = op[3], 0
  for i = 2, #record[3], 2 do total = total + record[3][i] end
  if actual > total + drawable(account) then
    abandon_fenced(account)
    holder = find_holder(account, API)
  end
  if not must and actual > total + drawable(account) then return insufficient(account) end
  actual = payable(account, actual)
  local event = blank()
  end_hold(account, holder, record[3], actual, event)
  emit(account, SETTLED_EVENT, event, op[5])
  finish(op, record[1], {KEPT_CHARGED, 0, actual, 0})
  return {SETTLED, 0, actual}
end

-- only when expired, (unused), (unused), record key
local function release_hold(account, op)
  if is_unknown(op[6]) then return {UNKNOWN_RECORD} end
  local record, holder, refusal = open_record(account, op[6])
  if not record then return refusal end
  if op[3] == 1 and record[2] > now then return {REFUSED} end
  emit(account, ADJUSTED_EVENT, (returned(account, holder, record[3])))
  finish(op, record[1], {KEPT_RELEASED, 0, 0, 0})
  return {RELEASED, 0}
end

-- A grant is {id, kind, remaining, expires at, frozen, claw} until it stands in its account.
local function burns_before(account, at, grant)
  local expires, others = account[at + G_EXPIRES], grant[4]
  if expires == 0 then expires = math.huge end
  if others == 0 then others = math.huge end
  if expires ~= others then return expires < others end
  local kind, other_kind = account[at + G_KIND], grant[2]
  local bought, other_bought = kind == PLAN or kind == TOPUP, other_kind == PLAN or other_kind == TOPUP
  if bought ~= other_bought then return other_bought end
  return account[at] < grant[1]
end

local function insert_grant(account, grant)
  local at = GRANTS
  while at <= account[LAST] and burns_before(account, at, grant) do at = at + G_SIZE end
  for i = 1, G_SIZE do table.insert(account, at + i - 1, grant[i]) end
  account[LAST] = account[LAST] + G_SIZE
end

local function total(account)
  local sum = held(account)
  for grant = GRANTS, account[LAST], G_SIZE do sum = sum + account[grant + G_REMAINING] end
  return sum
end

-- The most that one event may write off besides `amount` of a revocation: the event's sum must stay exact.
local function beside(account, id, amount)
  local grant, there = find_grant(account, id), 0
  if grant then there = account[grant + G_REMAINING] + held_from(account, id) - account[grant + G_CLAW] end
  return total(account) - math.min(there, amount)
end

-- `amount` -1: all that is left of it.
local function revoke(account, id, amount, event)
  local grant, owed = find_grant(account, id), amount > 0 and amount or 0
  if grant then
    local remaining, claw = account[grant + G_REMAINING], account[grant + G_CLAW]
    local now_taken, later = remaining, held_from(account, id) - claw
    if amount >= 0 then
      if amount < now_taken then now_taken = amount end
      if amount - now_taken < later then later = amount - now_taken end
      owed = amount - now_taken - later
    end
    account[grant + G_REMAINING] = remaining - now_taken
    account[grant + G_CLAW] = claw + later
    shift(event, id, -(now_taken + later))
    event[E_WRITTEN_OFF] = event[E_WRITTEN_OFF] + now_taken + later
  end
  account[DEBT] = account[DEBT] + owed
  event[E_DEBT] = event[E_DEBT] + owed
  event[E_WRITTEN_OFF] = event[E_WRITTEN_OFF] + owed
end

local function roll_over(account, from, cap, to, event)
  local moved, grant = 0, find_grant(account, from)
  if grant then
    local remaining = account[grant + G_REMAINING]
    moved = remaining < cap and remaining or cap
    shift(event, from, -remaining)
    event[E_WRITTEN_OFF] = event[E_WRITTEN_OFF] + remaining - moved
    account[grant + G_REMAINING] = 0
    -- What is frozen stays so wherever it moves.
    to[5] = account[grant + G_FROZEN]
  end
  shift(event, to[1], moved)
  to[3] = moved
  insert_grant(account, to)
end

-- number, change, then by change: 3 grant and 5 rollover: amount or cap, kind, expires at, from · 4 revoke: amount,
-- grant · 6 freeze and 7 unfreeze: grant (0: the account). A change's code is its event's kind.
local function apply(account, op)
  local number, change, amount = op[3], op[4], op[5]
  if number <= account[CHANGE] then return {DUPLICATE} end
  if number > account[CHANGE] + 1 then return {GAP, account[CHANGE]} end
  local event = blank()
  if change == 3 then
    if amount < 0 or amount > LIMIT or total(account) > LIMIT - amount then return {TOO_LARGE} end
    insert_grant(account, {number, op[6], amount, op[7], 0, 0})
  elseif change == 4 then
    if amount < -1 or amount > LIMIT or account[DEBT] > LIMIT - amount then return {TOO_LARGE} end
    if amount >= 0 and beside(account, op[6], amount) > LIMIT - amount then return {TOO_LARGE} end
    revoke(account, op[6], amount, event)
  elseif change == 5 then
    if amount < 0 or amount > LIMIT then return {TOO_LARGE} end
    roll_over(account, op[8], amount, {number, op[6], 0, op[7], 0, 0}, event)
  elseif op[5] == 0 then
    account[FROZEN] = change == 6 and 1 or 0
  else
    local grant = find_grant(account, op[5])
    if grant then account[grant + G_FROZEN] = change == 6 and 1 or 0 end
  end
  account[CHANGE], event[E_CHANGE] = number, number
  emit(account, change, event)
  return {APPLIED}
end

-- flushed sequence
local function can_park(account, op)
  if account[SEQ] ~= op[3] or account[REQUESTS] > now or account[TOKENS] > now then return false end
  local holder = account[LAST] + 1
  while account[holder] do
    if account[holder + H_LIVE] > 0 then return false end
    holder = holder + H_PARTS + account[holder + H_LENGTH]
  end
  return true
end

local function balance(account)
  local clawed, count = 0, 0
  for grant = GRANTS, account[LAST], G_SIZE do clawed, count = clawed + account[grant + G_CLAW], count + 1 end
  local answer = {BALANCE, available(account), held(account), account[DEBT], account[FROZEN], account[SEQ],
    account[CHANGE], in_flight(account), clawed, count}
  for grant = GRANTS, account[LAST], G_SIZE do
    for i = 0, G_FROZEN do answer[#answer + 1] = account[grant + i] end
  end
  return answer
end

-- What API holds are held of comes out of what remains; where they hold more than the store says is left of a grant, the
-- difference was revoked. (parts of all together, how many, {record, expires at, …})
local function restore_holds(account, parts, count, open)
  if count == 0 then return end
  for i = 1, #parts, 2 do
    local id, amount = parts[i], parts[i + 1]
    if not find_grant(account, id) then insert_grant(account, {id, ADJUST, 0, 0, 0, 0}) end
    local grant = find_grant(account, id)
    local remaining = account[grant + G_REMAINING]
    local missing = amount > remaining and amount - remaining or 0
    account[grant + G_REMAINING] = remaining - (amount - missing)
    account[grant + G_CLAW] = account[grant + G_CLAW] + missing
  end
  add_hold(account, API, parts)
  account[find_holder(account, API) + H_LIVE] = count
  local members, name = {}, string.sub(KEYS[key_index], name_begins)
  for i = 1, #open, 2 do
    members[i], members[i + 1] = string.format('%.0f', open[i + 1]), open[i] .. ':' .. name
  end
  restored[#restored + 1] = members
end

-- ticket key, ticket, sequence, change, frozen, debt, grants as in a balance, API holds as restore_holds takes them
local function loaded(op)
  local account, grants = {VERSION, op[7], op[8], op[5], op[6], 0, 0, GRANTS - 1, 0, 0, 2, 0, 0}, op[9]
  for i = 1, #grants, 5 do
    insert_grant(account, {grants[i], grants[i + 1], grants[i + 2], grants[i + 3], grants[i + 4], 0})
  end
  restore_holds(account, op[10], op[11], op[12])
  return account
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
local function without_account(op)
  local place, code = op[1], op[2]
  if code ~= 11 and code ~= 12 then return {NOT_LOADED} end
  local ticket = read(op[3])
  local stands = ticket and now < ticket[2]
  if code == 11 then
    if stands then return {REFUSED} end
    unpacked[op[3]], others[op[3]] = {op[4], now + TICKET_LIFE}, 'ticket'
    return {TICKETED}
  end
  if not stands or ticket[1] ~= op[4] then return {REFUSED} end
  unpacked[op[3]], others[op[3]] = false, 'ticket'
  local account = loaded(op)
  accounts[place], dirty[place], others[place] = account, true, nil
  tidy(account, #events)
  return {LOADED}
end

local function operate(account, op)
  local place, code = op[1], op[2]
  key_index = place + FIRST_KEY
  if code == 16 then return recall(op) end
  if not account then return without_account(op) end
  if code == 15 then return balance(account) end
  if code == 11 or code == 12 then return {ALREADY} end
  if code == 13 then
    if not can_park(account, op) then return {REFUSED} end
    accounts[place], dirty[place], others[place] = false, nil, 'parked'
    return {PARKED}
  end
  local events_before = #events
  changed = false
  local answer, parts = dispatch(account, op)
  tidy(account, events_before)
  if changed then dirty[place] = true end
  if parts then return reserved(account, parts) end
  if code == 14 then return balance(account) end
  if answer[1] <= HELD then
    answer[2] = available(account)
    if code >= 6 and code <= 9 and op[6] > 0 then read(op[6])[4][2] = answer[2] end
  end
  return answer
end

return {
  operate = operate, read_account = read_account, pack_account = pack_account, list_events = list_events,
  unpacked = unpacked, others = others, restored = restored,
}
