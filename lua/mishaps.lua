-- The rest of the account: what expires, what is owed, what dead sessions leave behind.

local function held(account)
  local sum, holder = 0, account[LAST] + 1
  while account[holder] do
    local length = account[holder + H_LENGTH]
    for k = holder + H_PARTS + 1, holder + H_LENGTH + length, 2 do sum = sum + account[k] end
    holder = holder + H_PARTS + length
  end
  return sum
end

local function is_empty(event)
  return #event[E_DELTAS] == 0 and event[E_DEBT] == 0 and event[E_WRITTEN_OFF] == 0
end

local function pay_debt(account, event)
  local debt = account[DEBT]
  if debt == 0 then return end
  local paid = drawable(account)
  if paid > debt then paid = debt end
  account[DEBT] = debt - paid
  event[E_DEBT] = event[E_DEBT] - paid
  local parts = take(account, paid)
  for i = 1, #parts, 2 do shift(event, parts[i], -parts[i + 1]) end
end

-- Returns a whole hold. Answers the event that may tell of it, and whether it was its session's last.
local function returned(account, holder, parts)
  local event = blank()
  local left_over, last = remove_hold(account, holder, parts)
  for i = 1, #parts, 2 do resolve(account, parts[i], 0, parts[i + 1], event) end
  if left_over then
    for k = 1, #left_over, 2 do resolve(account, left_over[k], 0, left_over[k + 1], event) end
  end
  return event, last
end

-- Emits only where returning it changes what the store knows.
local function return_hold(account, holder, parts)
  local event, last = returned(account, holder, parts)
  if not is_empty(event) then emit(account, ADJUSTED_EVENT, event) end
  return last
end

local function abandon_at(account, holder)
  local event = blank()
  local first = holder + H_PARTS
  local parts = {unpack(account, first, first + account[holder + H_LENGTH] - 1)}
  drop_holder(account, holder)
  for k = 1, #parts, 2 do
    event[E_FORFEITED] = event[E_FORFEITED] + parts[k + 1]
    resolve(account, parts[k], 0, parts[k + 1], event)
  end
  -- Before anything else draws on what came back.
  pay_debt(account, event)
  emit(account, ABANDONED_EVENT, event)
  return event[E_FORFEITED]
end

local function abandon_fenced(account)
  if not fenced then return end
  local holder = account[LAST] + 1
  while account[holder] do
    if account[holder + H_LIVE] > 0 and fenced[account[holder]] then
      -- What stands here now is the next holder, or the free place.
      abandon_at(account, holder)
    else
      holder = holder + H_PARTS + account[holder + H_LENGTH]
    end
  end
end

local function forget_empty_grants(account)
  local grant = GRANTS
  while grant <= account[LAST] do
    if account[grant + G_REMAINING] > 0 or held_from(account, account[grant]) > 0 then
      grant = grant + G_SIZE
    else
      for _ = 1, G_SIZE do table.remove(account, grant) end
      account[LAST] = account[LAST] - G_SIZE
      changed = true
    end
  end
end

local function fold(event, effect)
  event[E_WRITTEN_OFF] = event[E_WRITTEN_OFF] + effect[E_WRITTEN_OFF]
  event[E_DEBT] = event[E_DEBT] + effect[E_DEBT]
  local deltas = effect[E_DELTAS]
  for i = 1, #deltas, 2 do shift(event, deltas[i], deltas[i + 1]) end
end

-- Writes off what expired a minute ago, pays debt from what can be drawn, forgets empty grants. Rides in the
-- operation's last event, or in one of its own.
local function tidy(account, events_before)
  local effect = blank()
  for grant = GRANTS, account[LAST], G_SIZE do
    local remaining, expires = account[grant + G_REMAINING], account[grant + G_EXPIRES]
    if remaining > 0 and expires > 0 and expires + WRITE_OFF_AFTER <= now then
      shift(effect, account[grant], -remaining)
      effect[E_WRITTEN_OFF] = effect[E_WRITTEN_OFF] + remaining
      account[grant + G_REMAINING] = 0
    end
  end
  pay_debt(account, effect)
  forget_empty_grants(account)
  if is_empty(effect) then return end
  if #events > events_before then fold(events[#events], effect) else emit(account, ADJUSTED_EVENT, effect) end
  changed = true
end
