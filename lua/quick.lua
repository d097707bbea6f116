local RESERVED, SETTLED, RELEASED, HELD, INSUFFICIENT, LIMITED, FROZEN_ANSWER = 1, 2, 3, 4, 5, 6, 7
local NOT_LOADED, UNKNOWN_HOLD, FINISHED, REPEATED, MISMATCH = 8, 9, 10, 11, 12
local APPLIED, DUPLICATE, GAP, TICKETED, LOADED, ALREADY, REFUSED, PARKED = 13, 14, 15, 16, 17, 18, 19, 20
local BALANCE, TOO_LARGE, UNREADABLE, BACKLOGGED, UNKNOWN_RECORD = 21, 22, 23, 24, 25
-- As it was asked: the whole amount from one grant, and no limit; the amount.
local RESERVED_PLAINLY, SETTLED_PLAINLY = 26, 27
local LIMIT_REQUESTS, LIMIT_TOKENS, LIMIT_CONCURRENCY = 1, 2, 3

local API = 0
local WINDOW = 60000000

local FIRST_KEY = 6

-- Of this batch: the session that sends it, whether new work is refused, and the accounts that this session did not touch
-- before.
local session, backlogged = 0, false
local touched = {}
-- What the keys hold: an account's key is at its place + 2. Accounts that had to be unpacked, by place, `false` where there
-- is none. Accounts that changed.
local values
local accounts, dirty = {}, {}
-- The answers, and what the log will say of events; each a flat array, and how long it is.
local answers, filled = {}, 0
local log, logged = {}, 0

-- The two operations that nearly every request is made of, on a plain account. Each finds its arguments in the flat list of
-- a batch's operations, from `at` on: {length, account's place, code, arguments…}. It answers the account as it is then,
-- packed, and has written its answer; or it answers nothing, and has done nothing.

local pack, unpack_plain = struct.pack, struct.unpack

-- amount, floor, requests step, tokens step, concurrency
local function quick_reserve(packed, ops, at)
  local mark, till, others, seq, requests, tokens, grant, remaining, holder, live, held, tail = unpack_plain(PLAIN, packed)
  local amount = ops[at + 3]
  if mark ~= PLAIN_MARK or till <= now or backlogged or amount <= 0 or amount >= remaining then return nil end
  remaining = remaining - amount
  local can_draw = remaining + others
  if can_draw + amount < ops[at + 4] then return nil end
  local step = ops[at + 5]
  if step ~= -1 then
    requests = (requests < now and now or requests) + step
    if step == -2 or requests > now + WINDOW then return nil end
  end
  step = ops[at + 6]
  if step ~= -1 then
    tokens = (tokens < now and now or tokens) + step
    if step == -2 or tokens > now + WINDOW then return nil end
  end
  step = ops[at + 7]
  if step > 0 and live >= step then return nil end
  if holder ~= session then
    if live > 0 then return nil end
    holder = session
    touched[ops[at + 1]] = true
  end
  local last = filled
  if requests <= now and tokens <= now then
    answers[last + 1], answers[last + 2], answers[last + 3], filled = RESERVED_PLAINLY, can_draw, grant, last + 3
  else
    answers[last + 1], answers[last + 2] = RESERVED, can_draw
    answers[last + 3], answers[last + 4] = requests > now and requests - now or 0, tokens > now and tokens - now or 0
    answers[last + 5], answers[last + 6], answers[last + 7], filled = 2, grant, amount, last + 7
  end
  return pack(PLAIN, PLAIN_MARK, till, others, seq, requests, tokens, grant, remaining, holder, live + 1, held + amount,
    #tail, tail)
end

-- session, actual, tokens back, detail, length of the parts, parts…
local function quick_settle(packed, ops, at)
  local mark, till, others, seq, requests, tokens, grant, remaining, holder, live, held, tail = unpack_plain(PLAIN, packed)
  local actual, amount = ops[at + 4], ops[at + 9]
  if mark ~= PLAIN_MARK or till <= now or holder ~= ops[at + 3] or ops[at + 7] ~= 2 or ops[at + 8] ~= grant
    or amount <= 0 or actual > amount then return nil end
  held, live = held - amount, live - 1
  if held < 0 or live < 0 or (held == 0) ~= (live == 0) then return nil end
  seq, remaining, tokens = seq + 1, remaining + amount - actual, tokens - ops[at + 5]
  if tokens < 0 then tokens = 0 end
  local last = logged
  log[last + 1], log[last + 2], log[last + 3], log[last + 4] = SETTLED_EVENT, ops[at + 6], seq, actual
  if actual == 0 then
    log[last + 5], logged = 0, last + 5
  else
    log[last + 5], log[last + 6], log[last + 7], logged = 2, grant, -actual, last + 7
  end
  last = filled
  answers[last + 1], answers[last + 2], filled = SETTLED_PLAINLY, remaining + others, last + 2
  return pack(PLAIN, PLAIN_MARK, till, others, seq, requests, tokens, grant, remaining, holder, live, held, #tail, tail)
end
