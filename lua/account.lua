-- Accounts of any shape: how they are read and written, and what operations are made of.

-- The sessions whose holds anyone may return, the operation's events so far, how its account's key stands in KEYS and
-- where in a key the account's name begins.
local fenced, key_index, name_begins = nil, 0, 0
local events = {}
-- Whether the operation changed the account; set by whatever changes one.
local changed = false

local PLAIN_GRANTS_MAX = 64
-- Numbers that go over Lua's stack at once; it takes 8,000 values.
local PIECE = 4000

-- By the count of numbers.
local formats = {}

local function format_of(count)
  local format = formats[count]
  if not format then
    format = '<' .. string.rep('d', count)
    formats[count] = format
  end
  return format
end

-- The rest of an account of more than one piece.
local function read_on(account, packed, count)
  for first = PIECE, count - 1, PIECE do
    local size = math.min(PIECE, count - first)
    local piece = {struct.unpack(format_of(size), packed, first * 8 + 1)}
    for i = 1, size do account[first + i] = piece[i] end
  end
end

-- Of a plain account: change, the first grant's kind and expiry, then each further grant: id, kind, remaining, expiry.
local function plain_tail(grants)
  return '<ddH' .. string.rep('dHdd', grants - 1)
end

local function read_plain(packed)
  local mark, _, _, seq, requests, tokens, id, remaining, session, live, held, tail = struct.unpack(PLAIN, packed)
  if mark ~= PLAIN_MARK then error('not an account') end
  local grants = (#tail - 18) / 26 + 1
  local rest = {struct.unpack(plain_tail(grants), tail)}
  local last = GRANTS - 1 + grants * G_SIZE
  local account = {VERSION, 0, 0, seq, rest[1], requests, tokens, last, id, rest[3], remaining, rest[2], 0, 0}
  local at = GRANTS + G_SIZE
  for i = 4, #rest - 1, 4 do
    account[at], account[at + G_KIND], account[at + G_REMAINING] = rest[i], rest[i + 1], rest[i + 2]
    account[at + G_EXPIRES], account[at + G_FROZEN], account[at + G_CLAW] = rest[i + 3], 0, 0
    at = at + G_SIZE
  end
  account[at], account[at + H_LIVE], account[at + H_LENGTH] = session, live, 2
  account[at + H_PARTS], account[at + H_PARTS + 1] = id, held
  return account
end

local function is_plain(packed)
  return #packed % 2 == 1
end

local function read_account(packed)
  if is_plain(packed) then return read_plain(packed) end
  local count = #packed / 8
  local size = math.min(PIECE, count)
  local account = {struct.unpack(format_of(size), packed)}
  -- The last thing that struct.unpack answers is where it stopped.
  account[size + 1] = nil
  if size < count then read_on(account, packed, count) end
  if account[1] ~= VERSION or not account[LAST] then error('not an account') end
  return account
end

-- As plain, or nothing where it is not.
local function pack_plain(account)
  local holder, first, grants = account[LAST] + 1, GRANTS, (account[LAST] - GRANTS + 1) / G_SIZE
  if grants < 1 or grants > PLAIN_GRANTS_MAX or account[FROZEN] ~= 0 or account[DEBT] ~= 0
    or account[holder + H_LENGTH] ~= 2 or account[holder + H_PARTS + 2] then return nil end
  local live, held = account[holder + H_LIVE], account[holder + H_PARTS + 1]
  if live == 0 then held = 0 elseif account[holder + H_PARTS] ~= account[first] or held <= 0 then return nil end
  local till, others, tail = LIMIT, 0, {account[CHANGE], account[first + G_EXPIRES], account[first + G_KIND]}
  for grant = first, holder - 1, G_SIZE do
    local remaining, expires = account[grant + G_REMAINING], account[grant + G_EXPIRES]
    if remaining <= 0 or account[grant + G_FROZEN] ~= 0 or account[grant + G_CLAW] ~= 0 then return nil end
    if expires ~= 0 and expires < till then till = expires end
    if grant > first then
      others = others + remaining
      local last = #tail
      tail[last + 1], tail[last + 2] = account[grant], account[grant + G_KIND]
      tail[last + 3], tail[last + 4] = remaining, expires
    end
  end
  if till <= now then return nil end
  local packed = struct.pack(plain_tail(grants), unpack(tail))
  return struct.pack(PLAIN, PLAIN_MARK, till, others, account[SEQ], account[REQUESTS], account[TOKENS], account[first],
    account[first + G_REMAINING], account[holder], live, held, #packed, packed)
end

local function pack_account(account)
  local plain = pack_plain(account)
  if plain then return plain end
  local count = #account
  if count <= PIECE then return struct.pack(format_of(count), unpack(account, 1, count)) end
  local pieces = {}
  for first = 1, count, PIECE do
    local last = math.min(first + PIECE - 1, count)
    pieces[#pieces + 1] = struct.pack(format_of(last - first + 1), unpack(account, first, last))
  end
  return table.concat(pieces)
end

local function drawable(account)
  local sum = 0
  for grant = GRANTS, account[LAST], G_SIZE do
    local expires = account[grant + G_EXPIRES]
    if account[grant + G_FROZEN] == 0 and (expires == 0 or expires > now) then
      sum = sum + account[grant + G_REMAINING]
    end
  end
  return sum
end

local function find_grant(account, id)
  for grant = GRANTS, account[LAST], G_SIZE do
    if account[grant] == id then return grant end
  end
end

local function find_holder(account, session)
  local holder = account[LAST] + 1
  local name = account[holder]
  while name do
    if name == session and account[holder + H_LIVE] > 0 then return holder end
    holder = holder + H_PARTS + account[holder + H_LENGTH]
    name = account[holder]
  end
end

local function held_from(account, id)
  local sum, holder = 0, account[LAST] + 1
  while account[holder] do
    local length = account[holder + H_LENGTH]
    for k = holder + H_PARTS, holder + H_LENGTH + length, 2 do
      if account[k] == id then sum = sum + account[k + 1] end
    end
    holder = holder + H_PARTS + length
  end
  return sum
end

-- Where the session's holder stands, if it holds at least these parts, each named once.
local function holds(account, session, parts)
  local holder = find_holder(account, session)
  if not holder then return nil end
  local first = holder + H_PARTS
  local last = first + account[holder + H_LENGTH] - 1
  for i = 1, #parts, 2 do
    local id, amount, taken = parts[i], parts[i + 1], 0
    for k = 1, i - 1, 2 do
      if parts[k] == id then return nil end
    end
    for k = first, last, 2 do
      if account[k] == id then taken = account[k + 1] end
    end
    if amount <= 0 or amount > taken then return nil end
  end
  return holder
end

-- No deltas; never written to.
local NONE = {}

-- An event in the making: what one operation has done so far.
local function blank()
  return {'', 0, 0, 0, 0, 0, 0, 0, NONE}
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

-- `detail` tells of the account and of what was used; without one, the event has the account's name.
local function emit(account, kind, event, detail)
  local seq = account[SEQ] + 1
  account[SEQ] = seq
  changed = true
  event[1], event[E_SEQ], event[E_KIND] = detail or string.sub(KEYS[key_index], name_begins), seq, kind
  events[#events + 1] = event
end

-- Takes `amount`, which the account can pay, in burn order.
local function take(account, amount)
  local parts
  for grant = GRANTS, account[LAST], G_SIZE do
    if amount == 0 then break end
    local remaining, expires = account[grant + G_REMAINING], account[grant + G_EXPIRES]
    if remaining > 0 and account[grant + G_FROZEN] == 0 and (expires == 0 or expires > now) then
      local taken = amount < remaining and amount or remaining
      account[grant + G_REMAINING] = remaining - taken
      amount = amount - taken
      if parts then
        parts[#parts + 1] = account[grant]
        parts[#parts + 1] = taken
      else
        parts = {account[grant], taken}
      end
    end
  end
  return parts or {}
end

-- Pays from the balance; what is missing becomes debt.
local function pay(account, amount, event)
  if amount == 0 then return end
  local affordable = drawable(account)
  if affordable > amount then affordable = amount end
  local parts = take(account, affordable)
  for i = 1, #parts, 2 do shift(event, parts[i], -parts[i + 1]) end
  account[DEBT] = account[DEBT] + (amount - affordable)
  event[E_DEBT] = event[E_DEBT] + (amount - affordable)
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
  local claw = account[grant + G_CLAW]
  if claw == 0 then
    account[grant + G_REMAINING] = account[grant + G_REMAINING] + returned
    shift(event, id, -paid)
    return
  end
  local discarded = returned < claw and returned or claw
  claw = claw - discarded
  account[grant + G_REMAINING] = account[grant + G_REMAINING] + returned - discarded
  local owed = paid < claw and paid or claw
  account[grant + G_CLAW] = claw - owed
  account[DEBT] = account[DEBT] + owed
  shift(event, id, -(paid - owed))
  event[E_DEBT] = event[E_DEBT] + owed
end

local function grow_hold(account, holder, parts)
  changed = true
  local first = holder + H_PARTS
  for i = 1, #parts, 2 do
    local id, known = parts[i], false
    local length = account[holder + H_LENGTH]
    for k = first, first + length - 1, 2 do
      if account[k] == id then
        account[k + 1] = account[k + 1] + parts[i + 1]
        known = true
      end
    end
    if not known then
      table.insert(account, first + length, id)
      table.insert(account, first + length + 1, parts[i + 1])
      account[holder + H_LENGTH] = length + 2
    end
  end
end

-- Answers whether the session held nothing of this account before.
local function add_hold(account, session, parts)
  local holder, count = account[LAST] + 1, #parts
  while account[holder] do
    local live = account[holder + H_LIVE]
    if live == 0 then break end
    if account[holder] == session then
      account[holder + H_LIVE] = live + 1
      grow_hold(account, holder, parts)
      return false
    end
    holder = holder + H_PARTS + account[holder + H_LENGTH]
  end
  changed = true
  account[holder], account[holder + H_LIVE], account[holder + H_LENGTH] = session, 1, count
  for i = 1, count do account[holder + H_LENGTH + i] = parts[i] end
  -- No parts (a hold of nothing): what is left of the free place.
  if count == 0 then account[holder + H_PARTS], account[holder + H_PARTS + 1] = nil, nil end
  return true
end

-- Takes a holder out, or leaves it as the free place at the account's end.
local function drop_holder(account, holder)
  local length = account[holder + H_LENGTH]
  if length == 2 and not account[holder + H_PARTS + length] then
    account[holder + H_LIVE], account[holder + H_PARTS + 1] = 0, 0
    return
  end
  for _ = 1, H_PARTS + length do table.remove(account, holder) end
end

-- Takes the parts out of a holder, and what they leave empty.
local function lower_hold(account, holder, parts)
  changed = true
  local first = holder + H_PARTS
  for i = 1, #parts, 2 do
    local k = first
    while k < first + account[holder + H_LENGTH] do
      if account[k] == parts[i] then account[k + 1] = account[k + 1] - parts[i + 1] end
      if account[k + 1] <= 0 then
        table.remove(account, k)
        table.remove(account, k)
        account[holder + H_LENGTH] = account[holder + H_LENGTH] - 2
      else
        k = k + 2
      end
    end
  end
end

-- Ends one hold. Answers what the session still had although no hold of it is left, and whether none is.
local function remove_hold(account, holder, parts)
  local live = account[holder + H_LIVE]
  if live > 1 then
    lower_hold(account, holder, parts)
    account[holder + H_LIVE] = live - 1
    return nil, false
  end
  changed = true
  local left
  for k = holder + H_PARTS, holder + H_LENGTH + account[holder + H_LENGTH], 2 do
    local amount = account[k + 1]
    for i = 1, #parts, 2 do
      if parts[i] == account[k] then amount = amount - parts[i + 1] end
    end
    if amount > 0 then
      left = left or {}
      left[#left + 1] = account[k]
      left[#left + 1] = amount
    end
  end
  drop_holder(account, holder)
  return left, true
end

-- Pays `actual` from a hold's parts in the order taken, returns the rest, draws on the balance for an overrun.
local function end_hold(account, holder, parts, actual, event)
  local left_over, last = remove_hold(account, holder, parts)
  local left = actual
  for i = 1, #parts, 2 do
    local amount = parts[i + 1]
    local paid = left < amount and left or amount
    left = left - paid
    resolve(account, parts[i], paid, amount - paid, event)
  end
  if left_over then
    for k = 1, #left_over, 2 do resolve(account, left_over[k], 0, left_over[k + 1], event) end
  end
  pay(account, left, event)
  event[E_CHARGED] = event[E_CHARGED] + actual
  return last
end

-- What the log says of events, put after the first `count` of `list`: each {kind, account, seq, charged, length of its
-- deltas, deltas…}; where the kind has MORE, also written off, forfeited, debt delta and change, before the deltas' length.
-- Answers how long the list is then.
local function list_events(list, count)
  for i = 1, #events do
    local event = events[i]
    local kind, deltas = event[E_KIND], event[E_DELTAS]
    local written_off, forfeited, debt, change = event[E_WRITTEN_OFF], event[E_FORFEITED], event[E_DEBT], event[E_CHANGE]
    local more = written_off ~= 0 or forfeited ~= 0 or debt ~= 0 or change ~= 0
    list[count + 1] = more and kind + MORE or kind
    list[count + 2], list[count + 3], list[count + 4] = event[1], event[E_SEQ], event[E_CHARGED]
    count = count + 4
    if more then
      list[count + 1], list[count + 2], list[count + 3], list[count + 4] = written_off, forfeited, debt, change
      count = count + 4
    end
    -- What came and went within the event is none of the store's business.
    local place = count + 1
    list[place], count = 0, place
    for k = 1, #deltas, 2 do
      if deltas[k + 1] ~= 0 then
        list[count + 1], list[count + 2] = deltas[k], deltas[k + 1]
        count = count + 2
      end
    end
    list[place] = count - place
  end
  events = {}
  return count
end
