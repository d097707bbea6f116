-- The account model in Lua: what src/ledger/account says, operation by operation. Property tests hold the two together.
-- A script's functions are made anew at each call: a batch makes those of account.lua, requests.lua, mishaps.lua and
-- operations.lua only when an operation needs more than quick.lua can do.
--
-- An account is one flat array of numbers: {2, frozen, debt, seq, change, requests idle at, tokens idle at, place of the
-- last grant's end, grants…, holders…}.
--   grants: in burn order, each id, kind, remaining, expires at, frozen, claw
--   holders: each session, live holds, length of its parts, parts. One without live holds is a free place, with one
--   part; it stands last, so that a hold that ends and the next that begins move nothing.
-- It is written as doubles. A plain one, as nearly all are most of the time, is written as quick.lua needs it, and has an
-- odd length: {PLAIN_MARK, until when it is plain, what the other grants have, seq, requests idle at, tokens idle at, the
-- first grant's id, what remains of it, session, live holds, what they hold, what plain_tail tells of}. Plain is what is
-- not frozen and owes nothing, whose grants can all be drawn from, and which ends in its only place for a holder, with one
-- part, of the first grant.
-- Amounts are whole micro-credits below 2^53, times microseconds; flags are 0 or 1. Parts are flat: {grant, amount, …}.

local VERSION = 2
local FROZEN, DEBT, SEQ, CHANGE, REQUESTS, TOKENS, LAST, GRANTS = 2, 3, 4, 5, 6, 7, 8, 9
local G_KIND, G_REMAINING, G_EXPIRES, G_FROZEN, G_CLAW, G_SIZE = 1, 2, 3, 4, 5, 6
local H_LIVE, H_LENGTH, H_PARTS = 1, 2, 3

-- {account, seq, kind, charged, written off, forfeited, debt delta, change, deltas}; the account by its name, or by the
-- detail that names it.
local E_SEQ, E_KIND, E_CHARGED, E_WRITTEN_OFF, E_FORFEITED, E_DEBT, E_CHANGE, E_DELTAS = 2, 3, 4, 5, 6, 7, 8, 9
local SETTLED_EVENT, CHARGED_EVENT, ADJUSTED_EVENT, ABANDONED_EVENT = 1, 2, 8, 9
-- Added to the kind of an event that has more to tell than what was charged, and from which grants.
local MORE = 16

local LIMIT = 9007199254740991
local WRITE_OFF_AFTER = 60000000

-- How a plain account is written.
local PLAIN_MARK = 3
local PLAIN = '<BddddddddddHc0'

-- The ledger's time.
local now = 0
