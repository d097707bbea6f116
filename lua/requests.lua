-- Reserve and settle, on an account of any shape: each takes the account and the operation's array, {place, code, arguments…},
-- and answers an array {code, …}, or nothing and what was taken.

-- A kept answer's day, and an hour for clocks that differ.
local RECALLED_FOR = 90000000000
local SETTLING_IN = 30000000

-- After the prefix comes `acct:`.
name_begins = prefix_length + 6
if #meta[6] > 0 then
  fenced = {}
  for i = 1, #meta[6] do fenced[meta[6][i]] = true end
end
-- Other values than accounts, unpacked as they are needed: a key's place to its value, `false` where there is none. Of what
-- kind those are that changed.
local unpacked, others = {}, {}
-- What a load brings of API holds, for the set of those by expiry: for each account {expires at, member, …}.
local restored = {}
-- Records by their key's place: whether the batch says what the store has of them.
local recalled = {}
-- The shard was opened anew less than a record's life ago: a record that is missing here may be in the store.
local reopened_lately = (meta[8] or 0) > 0 and now < meta[8] + RECALLED_FOR
-- It was only just: workers may not have claimed yet what they alone remember.
local settling_in = (meta[8] or 0) > 0 and now < meta[8] + SETTLING_IN

local function available(account)
  if account[FROZEN] == 1 then return 0 end
  return drawable(account)
end

local function insufficient(account)
  return {INSUFFICIENT, available(account), held(account)}
end

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
local function reserved(account, parts)
  local requests, tokens = account[REQUESTS] - now, account[TOKENS] - now
  return {RESERVED, drawable(account), requests > 0 and requests or 0, tokens > 0 and tokens or 0, #parts, unpack(parts)}
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
  return nil, parts
end

local function give_back_tokens(account, back)
  local idle_at = account[TOKENS] - back
  account[TOKENS] = idle_at > 0 and idle_at or 0
end

-- session, actual, tokens back, detail, length of the parts, parts…
local function settle(account, op)
  local whose, parts = op[3], {unpack(op, 8, 7 + op[7])}
  local holder = holds(account, whose, parts)
  if not holder then return {UNKNOWN_HOLD} end
  local actual, event = payable(account, op[4]), blank()
  end_hold(account, holder, parts, actual, event)
  give_back_tokens(account, op[5])
  emit(account, SETTLED_EVENT, event, op[6])
  return {SETTLED, 0, actual}
end
