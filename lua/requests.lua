-- The two operations that nearly every request is made of. Each finds its arguments in the flat list of a batch's
-- operations, from `at` on: {length, account's place, code, arguments…}. It writes its answer itself, and answers nothing,
-- or an array {code, …}.

local RESERVED, SETTLED, RELEASED, HELD, INSUFFICIENT, LIMITED, FROZEN_ANSWER = 1, 2, 3, 4, 5, 6, 7
local NOT_LOADED, UNKNOWN_HOLD, FINISHED, REPEATED, MISMATCH = 8, 9, 10, 11, 12
local APPLIED, DUPLICATE, GAP, TICKETED, LOADED, ALREADY, REFUSED, PARKED = 13, 14, 15, 16, 17, 18, 19, 20
local BALANCE, TOO_LARGE, UNREADABLE, BACKLOGGED, UNKNOWN_RECORD = 21, 22, 23, 24, 25
local LIMIT_REQUESTS, LIMIT_TOKENS, LIMIT_CONCURRENCY = 1, 2, 3

local API = 0
local WINDOW = 60000000

-- Of this batch: the session that sends it, whether new work is refused, and what it does to the touched set.
local session, backlogged = 0, false
local touched = {}
-- What the keys hold, as it was read: an account's key is at its place + 2. Accounts and other values are unpacked as they
-- are needed: a key's place to its value, `false` where there is none. What is to be written, by place: of what kind.
local values
local accounts, unpacked, dirty = {}, {}, {}
-- Records by their key's place: whether the batch says what the store has of them. The shard was opened anew less than a
-- record's life ago: one that is missing here may be in the store.
local recalled, reopened_lately = {}, false
-- It was only just: workers may not have claimed yet what they alone remember.
local settling_in = false
-- What a load brings of API holds, for the set of those by expiry: for each account {expires at, member, …}.
local restored = {}
-- The answers, one flat array, and how long it is.
local answers, filled = {}, 0
-- Makes what is seldom needed.
local seldom

local function in_flight(account)
  local count, holder = 0, account[LAST] + 1
  while account[holder] do
    if account[holder] ~= API then count = count + account[holder + H_LIVE] end
    holder = holder + H_PARTS + account[holder + H_LENGTH]
  end
  return count
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

-- The answer of a reserve or an extend.
local function tell_reserved(account, parts)
  local requests, tokens = account[REQUESTS] - now, account[TOKENS] - now
  local count, at = #parts, filled
  answers[at + 1] = RESERVED
  answers[at + 2] = drawable(account)
  answers[at + 3] = requests > 0 and requests or 0
  answers[at + 4] = tokens > 0 and tokens or 0
  answers[at + 5] = count
  at = at + 5
  for i = 1, count do answers[at + i] = parts[i] end
  filled = at + count
end

-- amount, floor, requests step, tokens step, concurrency
local function reserve(account, ops, at)
  if backlogged then return {BACKLOGGED} end
  if account[FROZEN] == 1 then return {FROZEN_ANSWER} end
  local requests, wait = admit(account[REQUESTS], ops[at + 5])
  if not requests then return {LIMITED, LIMIT_REQUESTS, wait} end
  local tokens, tokens_wait = admit(account[TOKENS], ops[at + 6])
  if not tokens then return {LIMITED, LIMIT_TOKENS, tokens_wait} end
  local amount, floor, concurrency = ops[at + 3], ops[at + 4], ops[at + 7]
  local can_draw = drawable(account)
  if can_draw < floor or (concurrency > 0 and in_flight(account) >= concurrency) then
    seldom().abandon_fenced(account)
    can_draw = drawable(account)
    if concurrency > 0 and in_flight(account) >= concurrency then return {LIMITED, LIMIT_CONCURRENCY, 1000000} end
    if can_draw < floor then return seldom().insufficient(account) end
  end
  local parts = take(account, amount < can_draw and amount or can_draw)
  if add_hold(account, session, parts) then touched[ops[at + 1]] = true end
  account[REQUESTS], account[TOKENS] = requests, tokens
  return nil, parts
end

local function give_back_tokens(account, back)
  local idle_at = account[TOKENS] - back
  account[TOKENS] = idle_at > 0 and idle_at or 0
end

-- session, actual, tokens back, detail, length of the parts, parts…
local function settle(account, ops, at)
  local whose, count = ops[at + 3], ops[at + 7]
  local parts = count == 2 and {ops[at + 8], ops[at + 9]} or {unpack(ops, at + 8, at + 7 + count)}
  local holder = holds(account, whose, parts)
  if not holder then return {UNKNOWN_HOLD} end
  local actual, event = payable(account, ops[at + 4]), blank()
  if end_hold(account, holder, parts, actual, event) and whose == session then touched[ops[at + 1]] = false end
  give_back_tokens(account, ops[at + 5])
  emit(account, SETTLED_EVENT, event, ops[at + 6])
  return nil, actual
end
