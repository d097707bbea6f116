-- The operations: each takes the account and the operation's array, {account, code, arguments…}, and answers an array
-- {code, …}. Where an answer tells what is available, that stands second and is filled in at the end.

local RESERVED, SETTLED, RELEASED, HELD, INSUFFICIENT, LIMITED, FROZEN_ANSWER = 1, 2, 3, 4, 5, 6, 7
local NOT_LOADED, UNKNOWN_HOLD, FINISHED, REPEATED, MISMATCH = 8, 9, 10, 11, 12
local APPLIED, DUPLICATE, GAP, TICKETED, LOADED, ALREADY, REFUSED, PARKED = 13, 14, 15, 16, 17, 18, 19, 20
local BALANCE, TOO_LARGE, UNREADABLE, BACKLOGGED = 21, 22, 23, 24
local KEPT_HELD, KEPT_CHARGED, KEPT_RELEASED = 1, 2, 3
local LIMIT_REQUESTS, LIMIT_TOKENS, LIMIT_CONCURRENCY = 1, 2, 3

local API = 0
local WINDOW = 60000000
local TICKET_LIFE = 10000000
local RECORD_KEPT = 86400000000

-- Of this batch: the session that sends it, whether new work is refused, and what it does to the touched set.
local session, backlogged = 0, false
local touched = {}

local function insufficient(account)
  return {INSUFFICIENT, available(account), held(account)}
end

local function in_flight(account)
  local count, holders = 0, account[HOLDERS]
  for i = 1, #holders do
    if holders[i][1] ~= API then count = count + holders[i][2] end
  end
  return count
end

local function reserved(account, parts)
  local requests, tokens = account[REQUESTS] - now, account[TOKENS] - now
  if requests < 0 then requests = 0 end
  if tokens < 0 then tokens = 0 end
  if #parts == 2 then return {RESERVED, 0, requests, tokens, parts[1], parts[2]} end
  return {RESERVED, 0, requests, tokens, unpack(parts)}
end

-- A limit's state after one more step, or how long to wait (-1: for ever). A step of -1 is no limit, one of -2 is more
-- than the limit could ever admit.
local function admit(idle_at, step)
  if step == -1 then return idle_at end
  if step == -2 then return nil, -1 end
  if idle_at < now then idle_at = now end
  idle_at = idle_at + step
  if idle_at > now + WINDOW then return nil, idle_at - now - WINDOW end
  return idle_at
end

-- amount, floor, requests step, tokens step, concurrency
local function reserve(account, op)
  if backlogged then return {BACKLOGGED} end
  if account[FROZEN] == 1 then return {FROZEN_ANSWER} end
  local requests, wait = admit(account[REQUESTS], op[5])
  if not requests then return {LIMITED, LIMIT_REQUESTS, wait} end
  local tokens, tokens_wait = admit(account[TOKENS], op[6])
  if not tokens then return {LIMITED, LIMIT_TOKENS, tokens_wait} end
  local amount, floor, concurrency = op[3], op[4], op[7]
  local can_draw = drawable(account)
  if can_draw < floor or (concurrency > 0 and in_flight(account) >= concurrency) then
    abandon_fenced(account)
    can_draw = drawable(account)
    if concurrency > 0 and in_flight(account) >= concurrency then return {LIMITED, LIMIT_CONCURRENCY, 1000000} end
    if can_draw < floor then return insufficient(account) end
  end
  local parts = take(account, amount < can_draw and amount or can_draw)
  if add_hold(account, session, parts) then touched[op[1]] = true end
  account[REQUESTS], account[TOKENS] = requests, tokens
  return reserved(account, parts)
end

-- session, more, floor
local function extend(account, op)
  local holder = find_holder(account, op[3])
  if not holder then return {UNKNOWN_HOLD} end
  if account[FROZEN] == 1 then return {FROZEN_ANSWER} end
  local more, floor = op[4], op[5]
  if drawable(account) < floor then abandon_fenced(account) end
  local can_draw = drawable(account)
  if can_draw < floor then return insufficient(account) end
  local parts = take(account, more < can_draw and more or can_draw)
  grow_hold(holder, parts)
  return reserved(account, parts)
end

local function give_back_tokens(account, back)
  local idle_at = account[TOKENS] - back
  account[TOKENS] = idle_at > 0 and idle_at or 0
end

-- session, parts, actual, tokens back, usage
local function settle(account, op)
  local holder, parts = op[3], op[4]
  if not holds(account, holder, parts) then return {UNKNOWN_HOLD} end
  local actual, event = payable(account, op[5]), blank()
  if end_hold(account, holder, parts, actual, event) and holder == session then touched[op[1]] = false end
  give_back_tokens(account, op[6])
  event[E_USAGE] = op[7]
  emit(account, SETTLED_EVENT, event)
  return {SETTLED, 0, actual}
end

-- session, parts
local function shrink(account, op)
  local parts = op[4]
  if not holds(account, op[3], parts) then return {UNKNOWN_HOLD} end
  local event = blank()
  lower_hold(find_holder(account, op[3]), parts)
  for i = 1, #parts, 2 do resolve(account, parts[i], 0, parts[i + 1], event) end
  if not is_empty(event) then emit(account, ADJUSTED_EVENT, event) end
  return {RELEASED, 0}
end

-- session, parts, tokens back
local function release(account, op)
  local holder, parts = op[3], op[4]
  if not holds(account, holder, parts) then return {UNKNOWN_HOLD} end
  if return_hold(account, holder, parts) and holder == session then touched[op[1]] = false end
  give_back_tokens(account, op[5])
  return {RELEASED, 0}
end

-- Records: {fingerprint, until, parts held or 0, kept answer}, the kept answer {kind, available, amount, expires at}.
local read_record, write_record

-- What to answer when the record exists already.
local function repeated(record, fingerprint)
  if not record or (record[3] == 0 and record[2] <= now) then return nil end
  if record[1] ~= fingerprint then return {MISMATCH} end
  return {REPEATED, record[4]}
end

local function finish(op, fingerprint, kept)
  write_record(op, {fingerprint, now + RECORD_KEPT, 0, kept})
end

-- actual, must, usage, then record key, id, fingerprint (key 0: none)
local function charge(account, op)
  local key, fingerprint = op[6], op[8]
  if key > 0 then
    local kept = repeated(read_record(key), fingerprint)
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
  event[E_CHARGED], event[E_USAGE], event[E_RECORD] = actual, op[5], op[7]
  emit(account, CHARGED_EVENT, event)
  if key > 0 then finish(op, fingerprint, {KEPT_CHARGED, 0, actual, 0}) end
  return {SETTLED, 0, actual}
end

-- amount, expires in, (unused), record key, id, fingerprint
local function hold(account, op)
  local kept = repeated(read_record(op[6]), op[8])
  if kept then return kept end
  if backlogged then return {BACKLOGGED} end
  if account[FROZEN] == 1 then return {FROZEN_ANSWER} end
  local amount, expires_at = op[3], now + op[4]
  if drawable(account) < amount then abandon_fenced(account) end
  if drawable(account) < amount then return insufficient(account) end
  local parts = take(account, amount)
  add_hold(account, API, parts)
  write_record(op, {op[8], expires_at, parts, {KEPT_HELD, 0, amount, expires_at}})
  return {HELD, 0, amount, expires_at}
end

-- The record that is still held here, or what to answer.
local function open_record(account, key)
  local record = read_record(key)
  if not record then return nil, {UNKNOWN_HOLD} end
  if record[3] == 0 then return nil, {FINISHED, record[4]} end
  if not holds(account, API, record[3]) then return nil, {UNKNOWN_HOLD} end
  return record
end

-- actual, (unused), usage, record key, id
local function settle_hold(account, op)
  local record, refusal = open_record(account, op[6])
  if not record then return refusal end
  local actual, total = op[3], 0
  for i = 2, #record[3], 2 do total = total + record[3][i] end
  if actual > total + drawable(account) then abandon_fenced(account) end
  if actual > total + drawable(account) then return insufficient(account) end
  actual = payable(account, actual)
  local event = blank()
  end_hold(account, API, record[3], actual, event)
  event[E_USAGE], event[E_RECORD] = op[5], op[7]
  emit(account, SETTLED_EVENT, event)
  finish(op, record[1], {KEPT_CHARGED, 0, actual, 0})
  return {SETTLED, 0, actual}
end

-- only when expired, (unused), (unused), record key, id
local function release_hold(account, op)
  local record, refusal = open_record(account, op[6])
  if not record then return refusal end
  if op[3] == 1 and record[2] > now then return {REFUSED} end
  return_hold(account, API, record[3])
  finish(op, record[1], {KEPT_RELEASED, 0, 0, 0})
  return {RELEASED, 0}
end

local function burns_before(grant, other)
  local expires, others = grant[G_EXPIRES], other[G_EXPIRES]
  if expires == 0 then expires = math.huge end
  if others == 0 then others = math.huge end
  if expires ~= others then return expires < others end
  local kind, other_kind = grant[G_KIND], other[G_KIND]
  local bought, other_bought = kind == PLAN or kind == TOPUP, other_kind == PLAN or other_kind == TOPUP
  if bought ~= other_bought then return other_bought end
  return grant[1] < other[1]
end

local function insert_grant(account, grant)
  local grants, at = account[GRANTS], 1
  while at <= #grants and burns_before(grants[at], grant) do at = at + 1 end
  table.insert(grants, at, grant)
end

local function total(account)
  local sum, grants = held(account), account[GRANTS]
  for i = 1, #grants do sum = sum + grants[i][G_REMAINING] end
  return sum
end

-- `amount` -1: all that is left of it.
local function revoke(account, id, amount, event)
  local grant, owed = find_grant(account, id), amount > 0 and amount or 0
  if grant then
    local remaining, free = grant[G_REMAINING], held_from(account, id) - grant[G_CLAW]
    local now_taken, later = remaining, free
    if amount >= 0 then
      if amount < now_taken then now_taken = amount end
      if amount - now_taken < later then later = amount - now_taken end
      owed = amount - now_taken - later
    end
    grant[G_REMAINING] = remaining - now_taken
    grant[G_CLAW] = grant[G_CLAW] + later
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
    local remaining = grant[G_REMAINING]
    moved = remaining < cap and remaining or cap
    shift(event, from, -remaining)
    event[E_WRITTEN_OFF] = event[E_WRITTEN_OFF] + remaining - moved
    grant[G_REMAINING] = 0
    -- What is frozen stays so wherever it moves.
    to[G_FROZEN] = grant[G_FROZEN]
  end
  shift(event, to[1], moved)
  to[G_REMAINING] = moved
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
    revoke(account, op[6], amount, event)
  elseif change == 5 then
    if amount < 0 or amount > LIMIT then return {TOO_LARGE} end
    roll_over(account, op[8], amount, {number, op[6], 0, op[7], 0, 0}, event)
  elseif op[5] == 0 then
    account[FROZEN] = change == 6 and 1 or 0
  else
    local grant = find_grant(account, op[5])
    if grant then grant[G_FROZEN] = change == 6 and 1 or 0 end
  end
  account[CHANGE], event[E_CHANGE] = number, number
  emit(account, change, event)
  return {APPLIED}
end

-- flushed sequence
local function can_park(account, op)
  if account[SEQ] ~= op[3] or account[REQUESTS] > now or account[TOKENS] > now then return false end
  return #account[HOLDERS] == 0
end

local function balance(account)
  local grants, clawed = account[GRANTS], 0
  for i = 1, #grants do clawed = clawed + grants[i][G_CLAW] end
  local answer = {BALANCE, available(account), held(account), account[DEBT], account[FROZEN], account[SEQ],
    account[CHANGE], in_flight(account), clawed}
  for i = 1, #grants do
    local grant = grants[i]
    local at = #answer
    answer[at + 1], answer[at + 2], answer[at + 3] = grant[1], grant[G_KIND], grant[G_REMAINING]
    answer[at + 4], answer[at + 5] = grant[G_EXPIRES], grant[G_FROZEN]
  end
  return answer
end

-- ticket key, ticket, sequence, change, frozen, debt, grants as in a balance
local function loaded(op)
  local account, grants = {VERSION, {}, {}, op[8], op[7], op[5], op[6], 0, 0}, op[9]
  for i = 1, #grants, 5 do
    insert_grant(account, {grants[i], grants[i + 1], grants[i + 2], grants[i + 3], grants[i + 4], 0})
  end
  return account
end
