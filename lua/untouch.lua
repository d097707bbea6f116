-- Takes accounts that are parked out of the sessions' touched sets: who is not here has no holds.
--
-- KEYS: the accounts, then the touched sets. ARGV: the packed {accounts, prefix length}.
-- Answers how many accounts are not here.

local request = cmsgpack.unpack(ARGV[1])
local names = {}
for i = 1, request[1] do
  if redis.call('EXISTS', KEYS[i]) == 0 then
    -- After the prefix comes `acct:`.
    names[#names + 1] = string.sub(KEYS[i], request[2] + 6)
  end
end
if #names > 0 then
  for i = request[1] + 1, #KEYS do redis.call('SREM', KEYS[i], unpack(names)) end
end
return #names
