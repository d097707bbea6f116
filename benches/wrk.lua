-- POSTs a chat request for one user after another; prints one line of numbers at the end.
-- Arguments: the file of API keys, one a line.
local requests = {}
local turn = 0
local text = string.rep("How far is it to the harbour, and which line goes there? ", 4)
local body = '{"model":"bench-1","messages":[{"role":"user","content":"' .. text .. '"}],"max_tokens":64}'

function setup(thread)
  threads = threads or 0
  thread:set("offset", threads * 7919)
  threads = threads + 1
end

function init(arguments)
  for key in io.lines(arguments[1]) do
    requests[#requests + 1] = wrk.format("POST", "/v1/chat/completions", {
      ["authorization"] = "Bearer " .. key,
      ["content-type"] = "application/json",
    }, body)
  end
  turn = offset % #requests
end

function request()
  turn = turn % #requests + 1
  return requests[turn]
end

function done(summary, latency)
  local errors = summary.errors
  io.write(string.format("RESULT %d %d %d %d %d\n", summary.requests, summary.duration,
    latency:percentile(50), latency:percentile(99),
    errors.connect + errors.read + errors.write + errors.status + errors.timeout))
end
